"""Offer in Python what the command line does, as `import tl_dist`. Importing this module imports no framework.

import tl_dist as tl

cfg = tl.load_config("configs/quickstart.yaml", "epochs=4")
run = tl.train(cfg)
run.scores["test"]["accuracy"]
"""

from tl_dist.library.run import Run
from tl_dist.library.tools import Ranked, compare, cross_validate, init, rank, tune
from tl_dist.library.training import load_config, open_dataset, train

__all__ = [
    "Ranked", "Run", "compare", "cross_validate", "init", "load_config", "open_dataset", "rank", "train", "tune",
]  # fmt: skip
