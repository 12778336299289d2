"""`tl-dist data split`: write the splits or folds of a data set to a manifest."""

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
    """Write the manifest `to` and return its facts, as JSON. Refuse (64) fractions that exclude folds."""
    what = None
    if folds is not None and (test or validation):
        what = "give either --folds or --test and --validation."
    elif folds is None and not (test or validation):
        what = "there is nothing to hold out."
    elif not 0 <= test + validation < 1:
        what = f"--test {test} and --validation {validation} leave nothing to train on."
    if what is not None:
        fix = "such as --test 0.2 --validation 0.1, or --folds 5."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    return division.split(path, to, test=test, validation=validation, folds=folds, **more)


def show(facts: dict[str, Any], console: Console) -> None:
    """Print the size of each part and class, and the line for a config."""
    parts, classes, groups = facts["parts"], facts["classes"], facts["groups"]
    largest = max(sum(counts) for counts in parts.values())
    width = max(len(f"{largest:,}"), *(len(name) for name in parts))
    first_column = min(30, max(map(len, ("class", *classes))))
    for columns in column_groups(list(parts), width, console, beside=first_column):
        table = narrow_table("class", *columns, folds=("class",))
        table.add_row("all", *(f"{sum(parts[part]):,}" for part in columns), end_section=True)
        for k, name in enumerate(classes[:_MAX_CLASSES]):
            table.add_row(plain(name), *(f"{parts[part][k]:,}" for part in columns))
        if groups:
            table.add_section()
            table.add_row("groups", *(f"{groups[part]:,}" for part in columns))
        console.print(table)
    if len(classes) > _MAX_CLASSES:
        console.print(f"and {len(classes) - _MAX_CLASSES} more classes (--json lists all)")
    console.say(f"data.split={facts['file']}  (digest {facts['digest'][:12]})")
