"""`python -P -m tl_dist` is `tl-dist`; without -P, Python looks for modules in the working directory first."""

import sys

from tl_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
