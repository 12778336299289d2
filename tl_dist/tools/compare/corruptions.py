"""`tl-dist compare --corruptions`: two runs on the same corrupted images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import robustness


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
