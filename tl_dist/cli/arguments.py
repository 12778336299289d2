"""Options and arguments that several commands share, with one name, metavar and help each."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


class Split(StrEnum):
    """Name a part of a data set; files are named after it."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


ConfigFile = Annotated[Path, Argument(metavar="CONFIG", help="YAML file of the run", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    Argument(
        metavar="[KEY=VALUE]...", help="override a key of the file, such as optimizer.learning_rate=1e-3"
    ),
]
RunPath = Annotated[Path, Argument(metavar="RUN", help="directory of a run, such as runs/NAME")]
At = Annotated[
    str,
    Option(
        "--at",
        metavar="best|last|STEP",
        help="checkpoint to use; default: the best if the run keeps one, else the last",
        show_default=False,
    ),
]
RunsDirectory = Annotated[Path, Argument(metavar="[DIR]", help="directory that holds the runs")]
Root = Annotated[Path, Option("--runs", metavar="DIR", help="directory that holds the runs")]
Strategy = Annotated[
    str | None, Option(help="single, mirrored, horovod, collective, auto, or one from an installed package")
]
Workers = Annotated[
    int | None,
    Option("--workers", "-n", min=1, help="number of workers; default: one per visible GPU, or one"),
]
