"""`tl-dist data verify`: decode every image, with a progress bar, and list what is wrong."""

import os
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tl_dist.datasets.curation import verification
from tl_dist.terminal.console import Console
from tl_dist.terminal.tables import show_remarks

_SHOWN = 20


def verify(path: Path, *, workers: int | None, distance: int, console: Console) -> dict[str, Any]:
    """Return the findings, as JSON; the progress bar is drawn on `console` meanwhile."""
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        return verification.verify(
            path,
            workers=workers or len(os.sched_getaffinity(0)),
            distance=distance,
            advance=lambda done, total: progress.update(task, completed=done, total=total),
        )


def show(findings: dict[str, Any], console: Console) -> None:
    """Print each bad file with its offset and reason, the duplicates, and a summary."""
    for bad in findings["bad"]:
        console.say(f"{bad['split']}: {bad['id']}, byte {bad['offset']}: {bad['reason']}", style="red")
    for kind, groups in (("the same pixels", findings["equal"]), ("nearly the same", findings["near"])):
        for group in groups[:_SHOWN]:
            console.say(f"{kind}:", style="yellow")
            for member in group:
                console.say(f"  {member}")
        if len(groups) > _SHOWN:
            console.print(f"and {len(groups) - _SHOWN} more groups of {kind} (--json lists all)")
    show_remarks(findings["remarks"], console)
    console.say(
        f"{findings['num_examples']:,} examples of {findings['kind']}: {len(findings['bad'])} bad, "
        f"{len(findings['equal'])} groups of equal images, {len(findings['near'])} nearly equal pairs, "
        f"{findings['leaks']} across splits"
    )
