"""What several commands take: the same word, metavar and help in each."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Split(StrEnum):
    """A part of a data set; files are named after it."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file of the run", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="takes precedence over the file, such as optimizer.learning_rate=1e-3",
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="directory of a run, such as runs/NAME")]
At = Annotated[
    str,
    typer.Option(
        "--at",
        metavar="best|last|STEP",
        help="which checkpoint; default: the best where the run keeps one, else the last",
        show_default=False,
    ),
]
Root = Annotated[Path, typer.Option("--runs", metavar="DIR", help="directory that holds the runs")]
Strategy = Annotated[
    str | None, typer.Option(help="single, mirrored, horovod, collective, auto, or one of another package")
]
Workers = Annotated[
    int | None, typer.Option("--workers", "-n", min=1, help="how many; default: one per visible GPU, or one")
]
