"""`tl-dist data split`: write splits or folds down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.registry import CURATION, lookup

_MAX_CLASSES = 8


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
    made: dict[str, Any] = lookup(CURATION, "split")(
        path, to, test=test, validation=validation, folds=folds, **more
    )
    return made


def show(made: dict[str, Any], console: Console) -> None:
    """The size of each part and class, and what to put into a config."""
    classes = made["classes"][:_MAX_CLASSES]
    table = Table("", "examples", *(escape(name) for name in classes), box=None)
    for name, counts in made["parts"].items():
        table.add_row(name, f"{sum(counts):,}", *(f"{number:,}" for number in counts[: len(classes)]))
    console.print(table)
    console.print(Text(f"data.split={made['file']}  (digest {made['digest'][:12]})"))
