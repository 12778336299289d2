"""`tl-dist data split`: write splits or folds down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tl_dist.datasets.curation import split as division
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.terminal.console import Console, plain
from tl_dist.terminal.tables import column_groups, narrow_table

_MAX_CLASSES = 20


def split(
    path: Path, to: Path, *, test: float, validation: float, folds: int | None, **more: Any
) -> dict[str, Any]:
    """What was written, as JSON; refuses (64) fractions and folds that make no sense together."""
    what = None
    if folds is not None and (test or validation):
        what = "give either --folds or --test and --validation."
    elif folds is None and not (test or validation):
        what = "nothing is to be held out."
    elif not 0 <= test + validation < 1:
        what = f"--test {test} and --validation {validation} leave nothing to train on."
    if what is not None:
        fix = "such as --test 0.2 --validation 0.1, or --folds 5."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    return division.split(path, to, test=test, validation=validation, folds=folds, **more)


def show(made: dict[str, Any], console: Console) -> None:
    """The size of each part and class, and what to put into a config."""
    parts, classes = made["parts"], made["classes"]
    largest = max(sum(counts) for counts in parts.values())
    width = max(len(f"{largest:,}"), *(len(name) for name in parts))
    for some in column_groups(
        list(parts), width, console, beside=min(30, max(map(len, ("class", *classes))))
    ):
        table = narrow_table("class", *some, folds=("class",))
        table.add_row("all", *(f"{sum(parts[name]):,}" for name in some), end_section=True)
        for k, name in enumerate(classes[:_MAX_CLASSES]):
            table.add_row(plain(name), *(f"{parts[part][k]:,}" for part in some))
        if made["groups"]:
            table.add_section()
            table.add_row("groups", *(f"{made['groups'][name]:,}" for name in some))
        console.print(table)
    if len(classes) > _MAX_CLASSES:
        console.print(f"and {len(classes) - _MAX_CLASSES} more classes (--json lists all)")
    console.say(f"data.split={made['file']}  (digest {made['digest'][:12]})")
