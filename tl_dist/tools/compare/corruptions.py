"""`tl-dist eval --corruptions` and `compare --corruptions`: what is asked for, and what is shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
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


def compare(first: Path, second: Path, split: str) -> dict[str, Any]:
    """`robustness.compared` of what the runs keep. Refuses (65) other images or corruptions."""
    a, b = (robustness.load(robustness.file_of(run, split)) for run in (first, second))
    try:
        return robustness.compared(a, b)
    except ValueError as error:
        raise Refusal(
            f"{first} and {second} were not evaluated on the same corrupted images: {error}.",
            fix="run tl-dist eval with the same --corruptions, --severity and --split for both.",
            code=ExitCode.DATA,
        ) from error


def show_compared(found: Mapping[str, Any], names: tuple[str, str], say: Callable[[str], None]) -> None:
    """The errors side by side, then the mean corruption error and whether the runs differ."""
    for name, *errors, ratio in zip(found["names"], *found["errors"], found["ratios"], strict=True):
        shown = "-" if ratio is None else f"{ratio:.3f}"
        say(f"{name}: error {errors[0]:.4f} and {errors[1]:.4f}, ratio {shown}")
    if found["mce"] is not None:
        say(f"mean corruption error of {names[1]} relative to {names[0]}, not to AlexNet: {found['mce']:.4f}")
    if None not in found["mce_alexnet"]:
        first, second = found["mce_alexnet"]
        say(f"mCE by AlexNet's errors {first:.4f} and {second:.4f}; {robustness.NOT_PUBLISHED}")
    if found["difference"] is not None:
        low, high = found["interval"]
        by = found.get("interval_by", f"paired bootstrap over {found['num_examples']:,} examples")
        say(
            f"difference of the mean error {found['difference']:+.4f} | 95 % interval {low:+.4f} to {high:+.4f} ({by})"
        )
