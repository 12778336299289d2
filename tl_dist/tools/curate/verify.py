"""`tl-dist data verify`: decode everything, with a progress bar, and list what is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tl_dist.datasets.curation import verification
from tl_dist.terminal.console import Console
from tl_dist.terminal.tables import show_remarks

_SHOWN = 20


def verify(path: Path, *, workers: int | None, distance: int, console: Console) -> dict[str, Any]:
    """What was found, as JSON; the bar is drawn on `console` while it is looked for."""
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        return verification.verify(
            path,
            workers=workers or len(os.sched_getaffinity(0)),
            distance=distance,
            advance=lambda done, total: progress.update(task, completed=done, total=total),
        )


def show(found: dict[str, Any], console: Console) -> None:
    """Each bad file with its offset and reason, the duplicates, and one line that sums up."""
    for bad in found["bad"]:
        console.say(f"{bad['split']}: {bad['id']}, byte {bad['offset']}: {bad['reason']}", style="red")
    for kind, groups in (("the same pixels", found["equal"]), ("nearly the same", found["near"])):
        for group in groups[:_SHOWN]:
            console.say(f"{kind}:", style="yellow")
            for member in group:
                console.say(f"  {member}")
        if len(groups) > _SHOWN:
            console.print(f"and {len(groups) - _SHOWN} more groups of {kind} (--json lists all)")
    show_remarks(found["remarks"], console)
    console.say(
        f"{found['num_examples']:,} examples of {found['kind']}: {len(found['bad'])} bad, "
        f"{len(found['equal'])} groups of equal images, {len(found['near'])} nearly equal pairs, "
        f"{found['leaks']} across splits"
    )
