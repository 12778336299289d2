"""`tl-dist --help` shows every command once, in the group in which it is looked for."""

import re

import typer
from typer.testing import CliRunner

from tl_dist.cli.main import app

GROUPS = {  # as a user meets them
    "Start": ("init", "config"),
    "Train": ("train", "runs", "prepare", "submit", "worker", "sync"),
    "Use": ("predict", "serve", "export", "prune", "trust"),
    "Trust": ("eval", "report", "explain", "compare", "calibrate", "threshold", "cv"),
    "Choose": ("rank", "tune", "models"),
    "Machine": ("doctor", "env", "install-horovod"),
    "Data": ("data", "features", "augment"),
}


def test_every_command_has_one_group_and_is_shown_in_it() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    visible = [name for name, command in commands.items() if not command.hidden]
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(visible)
    shown = re.sub(r"\x1b\[[\d;]*m", "", CliRunner().invoke(app, ["--help"]).output)
    panels = re.findall(r"╭─ (\w+) ─+╮\n(.*?)╰", shown, flags=re.DOTALL)
    listed = {title: tuple(re.findall(r"^│ ([a-z][\w-]+) ", rows, flags=re.MULTILINE)) for title, rows in panels}
    assert {title: names for title, names in listed.items() if title in GROUPS} == GROUPS
    assert [title for title in listed if title in GROUPS] == [*GROUPS]
