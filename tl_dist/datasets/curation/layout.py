"""Recognise the data set at a path by the names of files and folders."""

import os
from pathlib import Path

from tl_dist.config import DataConfig, extensions, registry
from tl_dist.config import file as config_file
from tl_dist.datasets import Splits
from tl_dist.datasets.division import open_splits
from tl_dist.datasets.files import unusable


def recognise(path: Path) -> DataConfig:
    """Return the `data` section for the data set at `path`, with no test split made; refuses (65) anything else."""
    if not path.exists():
        raise unusable(f"there is nothing at {path}", "correct the path")
    try:
        names = {name for name in os.listdir(path) if not name.startswith(".")} if path.is_dir() else set()
    except OSError as error:
        raise unusable(f"{path} cannot be listed: {error.strerror}", "permit it, or correct the path") from error
    if path.is_dir() and not names:
        raise unusable(f"{path} is an empty directory", "correct the path, or put the data there")
    for name, dataset in registry.DATASETS.items():
        if dataset.recognise is not None and registry.load(dataset.recognise)(path, names):
            return DataConfig(name=name, path=str(path.absolute()), test_fraction=0.0)
    others = extensions.offers(registry.DATASET.group)
    raise unusable(
        f"{path} is no data set that is known here",
        f"give a config (.yaml), or a directory of one of {', '.join(registry.DATASETS)}"
        + (f"; {', '.join(others)} of other packages need a config" if others else ""),
    )


def opened(path: Path) -> tuple[DataConfig, Splits]:
    """Open the data set of a config (.yaml), or the one at `path`."""
    data = _described(path)
    return data, open_splits(data)[0]


def opened_whole(path: Path) -> Splits:
    """Open a data set as `opened` does with nothing held out: only the splits that its files define."""
    whole = {"validation_fraction": 0.0, "test_fraction": 0.0, "split": None, "folds": None, "fold": None}
    return open_splits(_described(path).model_copy(update=whole))[0]


def _described(path: Path) -> DataConfig:
    is_config = path.suffix in (".yaml", ".yml") and path.is_file()
    return config_file.load(path).data if is_config else recognise(path)
