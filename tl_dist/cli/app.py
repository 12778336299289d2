"""The application, and the options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

app = typer.Typer(
    name="tl-dist",
    help="Distributed transfer learning of vision networks: one config file, any number of workers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def group(name: str, help_text: str, *, panel: str) -> typer.Typer:
    """Add a command that has commands of its own; the help shows it in `panel`."""
    typed = typer.Typer(help=help_text, no_args_is_help=True)
    app.add_typer(typed, name=name, rich_help_panel=panel)
    return typed


class Split(StrEnum):
    """Name a part of a data set; files are named after it."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


ConfigFile = Annotated[Path, Argument(metavar="CONFIG", help="YAML file of the run", show_default=False)]
Overrides = Annotated[list[str] | None, Argument(metavar="[KEY=VALUE]...", help="override a key, such as epochs=4")]
RunPath = Annotated[Path, Argument(metavar="RUN", help="directory of a run, such as runs/NAME")]
At = Annotated[str, Option(metavar="best|last|STEP", help="checkpoint; default: best, else last", show_default=False)]
RunsDirectory = Annotated[Path, Argument(metavar="[DIR]", help="directory that holds the runs")]
Root = Annotated[Path, Option("--runs", metavar="DIR", help="directory that holds the runs")]
Strategy = Annotated[str | None, Option(help="single, mirrored, horovod, collective, auto or an extension")]
Workers = Annotated[
    int | None, Option("--workers", "-n", min=1, help="number of workers; default: one per GPU, or one")
]
AsJson = Annotated[bool, Option("--json", help="print JSON")]
