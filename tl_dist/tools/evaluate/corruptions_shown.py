"""`tl-dist eval --corruptions`: what is asked for, and what is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tl_dist.data.corruptions import CATEGORIES, SEVERITIES, named
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import robustness
from tl_dist.terminal.tables import narrow_table

if TYPE_CHECKING:
    from tl_dist.terminal.console import Console


def asked(corruptions: str, severity: str) -> tuple[list[str], list[int]]:
    """Names and severities from the command line: "all" or "noise,fog"; "1-5", "3". Refuses (64) others."""
    match = re.fullmatch(r"([1-5])(?:-([1-5]))?", severity)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (2, 1)
    if first > last:
        fix = f"write one from {SEVERITIES[0]} to {SEVERITIES[-1]}, or a range such as 1-5."
        raise Refusal(f"there is no severity {severity}.", fix=fix, code=ExitCode.USAGE)
    return named(corruptions), list(range(first, last + 1))


def show(record: Mapping[str, Any], console: Console) -> None:
    """Accuracy by corruption and severity, and the mean corruption error."""
    severities = [str(one) for one in record["severities"]]
    table = narrow_table("corruption", *severities, *["mean"] * (len(severities) > 1))
    cells = [""] * len(severities) + [""] * (len(severities) > 1)
    table.add_row("none", *cells[:-1], f"{record['clean']:.3f}")
    for names in CATEGORIES.values():
        rows = {name: record["accuracy"][name] for name in names if name in record["accuracy"]}
        if rows:
            table.add_section()
        for name, values in rows.items():
            mean = [sum(values) / len(values)] if len(values) > 1 else []
            table.add_row(name, *(f"{value:.3f}" for value in [*values, *mean]))
    console.say(
        f"{record['split']} accuracy by corruption and severity, of {record['num_examples']:,} examples | "
        f"step {record['step']:,} | applied at the model's size, {record['image_size']} pixels",
        style="bold",
    )
    console.print(table)
    if record["mean_corruption_error"] is not None:
        console.say(
            f"mean corruption error {record['mean_corruption_error']:.4f}, of images as they are "
            f"{1 - record['clean']:.4f}; not normalized: tl-dist compare --corruptions does, by another run"
        )
    if record["mce_alexnet"] is not None:
        console.say(
            f"mCE {record['mce_alexnet']:.4f}, normalized by AlexNet's errors; {robustness.NOT_PUBLISHED}"
        )
