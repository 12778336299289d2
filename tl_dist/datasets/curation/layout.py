"""Which data set lies at a path: by names of files and folders alone."""

from __future__ import annotations

import os
from pathlib import Path

from tl_dist.config import DataConfig, extensions, registry
from tl_dist.config import file as config_file
from tl_dist.datasets import Splits
from tl_dist.datasets.division import open_splits
from tl_dist.refusal import ExitCode, Refusal


def recognise(path: Path) -> DataConfig:
    """The `data` section that reads what lies at `path`, without a split of its own making; refuses (65) else."""
    if not path.exists():
        raise Refusal(f"there is nothing at {path}.", fix="correct the path.", code=ExitCode.DATA)
    try:
        found = {name for name in os.listdir(path) if not name.startswith(".")} if path.is_dir() else set()
    except OSError as error:
        what = f"{path} cannot be listed: {error.strerror}."
        raise Refusal(what, fix="permit it, or correct the path.", code=ExitCode.DATA) from error
    if path.is_dir() and not found:
        fix = "correct the path, or put the data there."
        raise Refusal(f"{path} is an empty directory.", fix=fix, code=ExitCode.DATA)
    for name, dataset in registry.DATASETS.items():
        if dataset.recognise is not None and registry.load(dataset.recognise)(path, found):
            return DataConfig(name=name, path=str(path.absolute()), test_fraction=0.0)
    others = extensions.offers(registry.DATASET.group)
    raise Refusal(
        f"{path} is no data set that is known here.",
        fix=f"give a config (.yaml), or a directory of one of {', '.join(registry.DATASETS)}"
        + (f"; {', '.join(others)} of other packages need a config." if others else "."),
        code=ExitCode.DATA,
    )


def opened(path: Path) -> tuple[DataConfig, Splits]:
    """The data set of a config (.yaml), or the one that lies at `path`."""
    data = _described(path)
    return data, open_splits(data)[0]


def opened_whole(path: Path) -> Splits:
    """The same with nothing held out: only splits that the files themselves make are there."""
    whole = {"validation_fraction": 0.0, "test_fraction": 0.0, "split": None, "folds": None, "fold": None}
    return open_splits(_described(path).model_copy(update=whole))[0]


def _described(path: Path) -> DataConfig:
    is_config = path.suffix in (".yaml", ".yml") and path.is_file()
    return config_file.load(path).data if is_config else recognise(path)
