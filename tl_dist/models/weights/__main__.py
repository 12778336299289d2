"""`python -m tl_dist.models.weights`: convert a file of weights, in a process that only does that."""

import sys

from tl_dist.models.weights import main

sys.exit(main())
