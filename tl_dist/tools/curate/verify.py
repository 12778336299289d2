"""`tl-dist data verify`: list what is wrong with a data set."""

from typing import Any

from tl_dist.terminal.console import Console
from tl_dist.terminal.tables import show_remarks

_SHOWN = 20


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
