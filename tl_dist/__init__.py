"""Distributed transfer learning of vision networks with TensorFlow and Keras.

One YAML file describes a run; the number of workers changes its rounding alone. Importing this imports nothing else:
each name is fetched when it is first used.

    import tl_dist as tl

    run = tl.train(tl.load_config("configs/quickstart.yaml"))
    run.scores["test"]["accuracy"]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_dist.config import Config
    from tl_dist.library import Ranked, Run, compare, cross_validate, init, load_config, open_dataset, rank, train, tune
    from tl_dist.refusal import Refusal

__version__ = "0.1.0"
__all__ = [
    "Config", "Ranked", "Refusal", "Run", "compare", "cross_validate", "init", "load_config", "open_dataset", "rank",
    "train", "tune",
]  # fmt: skip

_HOMES = {"Config": "tl_dist.config", "Refusal": "tl_dist.refusal"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "tl_dist.library")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
