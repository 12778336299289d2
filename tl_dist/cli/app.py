"""The application, the groups in which its help shows commands, and the options that several commands share."""

from collections.abc import Mapping
from copy import copy
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

GROUPS: Mapping[str, tuple[str, ...]] = {  # as a user meets them
    "Start": ("init", "config"),
    "Train": ("train", "runs", "prepare", "submit", "worker", "sync"),
    "Use": ("predict", "serve", "export", "prune"),
    "Trust": ("eval", "report", "explain", "compare", "calibrate", "cv"),
    "Choose": ("rank", "tune"),
    "Data": ("data", "features", "augment"),
    "Machine": ("doctor", "env"),
}


class GroupedCommands(TyperGroup):
    """List and show the commands by `GROUPS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, group by group; commands without a group come last."""
        names = super().list_commands(ctx)
        order = [name for group in GROUPS.values() for name in group]
        return sorted(names, key=lambda name: order.index(name) if name in order else len(order))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, with its group as the panel of the help."""
        view: Any = copy(super().get_command(ctx, cmd_name))
        for title, names in GROUPS.items():
            if cmd_name in names:
                view.rich_help_panel = title
        return view


app = typer.Typer(
    name="tl-dist",
    cls=GroupedCommands,
    help="Distributed transfer learning of vision networks: one config file, any number of workers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def group(name: str, help_text: str) -> typer.Typer:
    """Add a command that has commands of its own."""
    typed = typer.Typer(help=help_text, no_args_is_help=True)
    app.add_typer(typed, name=name)
    return typed


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
