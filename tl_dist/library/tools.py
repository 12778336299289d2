"""Do in Python what the commands do that start from a data set, a config or two runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.library.run import Run
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.terminal.console import Console


@dataclass(frozen=True)
class Ranked:
    """One network as `rank` scores it, and the config that trains from it."""

    candidate: str
    """BACKBONE, or BACKBONE:BLOCK"""
    linear_probe: float
    """accuracy of a linear classifier on its frozen features, over folds of the training examples"""
    interval: Sequence[float]
    """of the probe, 95 %"""
    scores: Mapping[str, Any] = field(repr=False)
    """these and all other scores, as `tl-dist rank --json` prints them"""
    config: Config = field(repr=False)
    """the config with this network, under a name of its own"""


def init(data: str | Path, out: str | Path | None = None) -> Path:
    """Write a short config for a folder of images, a CSV file or another data set, and return its path.

    A manifest of the splits is written beside it. `out` defaults to DATA.yaml in the working directory. Raises
    `Refusal` for data of no known layout, for too few images, and where a file would be replaced.
    """
    from tl_dist.tools.curate.init import init

    return init(Path(data), None if out is None else Path(out), Console().say)


def cross_validate(
    cfg: Config, folds: int | None = None, seeds: int | None = None, by: str | None = None, *, runs: str | Path = "runs"
) -> dict[str, Any]:
    """Cross-validate a config as `tl-dist cv` does, and return its figures; the same call resumes after a stop.

    "accuracy" (or the figure that "main" names) is the mean over `folds` of `seeds` random divisions, 5 of each by
    default, and "interval" its 95 % interval; "fold_accuracies" [seeds, folds], "groups" and "figures" are the details.
    With `by`, a column or regular expression, each of its groups is held out once instead. The predictions of every
    example are in `predictions/out_of_fold.npz` of the run NAME-cv. Raises `Refusal` when it is stopped.
    """
    from tl_dist.launcher.train import Request
    from tl_dist.tools.cross_validate.command import cross_validated

    _at_least(2, folds=folds)
    _at_least(1, seeds=seeds)
    return cross_validated(Request(cfg, runs=Path(runs)), folds, seeds, Console(), by)[1]


def tune(cfg: Config, *, folds: int = 5, runs: str | Path = "runs") -> tuple[Config, list[dict[str, Any]]]:
    """Search for the best classifier on cached features; return the config of the best, and all settings, best first.

    Each setting has its "classifier" and "model" sections, "accuracy", "log_loss", and the number of "folds" behind
    them. They are scored on the validation split, or on `folds` folds of the training split where there is none; the
    test split is not used. Raises `Refusal` for a classifier that is not computed from pooled features.
    """
    from tl_dist.launcher.train import Request
    from tl_dist.tools.tune.command import tuned

    _at_least(2, folds=folds)
    best, settings = tuned(Request(cfg, runs=Path(runs)), folds, Console())
    return config_file.load(best), settings


def rank(cfg: Config, backbones: Sequence[str], *, images: int = 5000, runs: str | Path = "runs") -> list[Ranked]:
    """Rank pretrained networks by their features of at most `images` training images, the one to start from first.

    `backbones` are names, each BACKBONE or BACKBONE:BLOCK, or the path of a YAML file with a list of them. Features and
    scores are kept in `runs`, so that a second call computes only what is new. Raises `Refusal` for an unknown network,
    for fewer than two, and for a config that cannot be trained from one of them.
    """
    from tl_dist.launcher.train import Request
    from tl_dist.tools.rank.command import ranked

    _at_least(20, images=images)
    names = backbones if isinstance(backbones, str) else ",".join(backbones)
    rows = []
    for choice, scores in ranked(Request(cfg, runs=Path(runs)), names, Console(), images=images):
        name = f"{cfg.name[:24]}-{re.sub(r'[^A-Za-z0-9._-]+', '-', choice.label)[:39]}"
        own = choice.training.model_copy(update={"name": name})
        rows.append(Ranked(choice.label, scores["linear_probe"], scores["interval"], scores, own))
    return rows


def compare(
    first: Run | str | Path, second: Run | str | Path, split: str = "test", *, corruptions: bool = False
) -> dict[str, Any]:
    """Compare two runs by a paired test on the same examples, as `tl-dist compare` does, and return its figures.

    "accuracies" of both, their "difference" (second less first) with its 95 % "interval", and the exact "p_value". With
    `corruptions`, of what `Run.evaluate` has measured on corrupted images: "errors" [2, corruptions] and "mce" instead.
    Raises `Refusal` for runs that were evaluated on different examples, or not on this split.
    """
    from tl_dist.tools.compare import command

    a, b = (each.path if isinstance(each, Run) else Path(each) for each in (first, second))
    return (command.compare_corrupted if corruptions else command.compare)(a, b, split)


def _at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            what = f"{name}={value} is too few."
            raise Refusal(what, fix=f"write {name}={least} or more.", code=ExitCode.USAGE)
