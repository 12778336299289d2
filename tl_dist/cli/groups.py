"""The application, and the groups in which `tl-dist --help` shows its commands, as a user meets them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import typer
from typer.core import TyperGroup

GROUPS: Mapping[str, tuple[str, ...]] = {
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
