"""`python -m tl_dist` is `tl-dist`."""

import sys

from tl_dist.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
