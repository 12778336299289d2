"""`tl-dist compare`: test whether two runs differ on the same examples, as they are or corrupted."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tl_dist.files.private import refuse_unsafe, refuse_unsafe_below
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import clusters, figures, predictions, robustness, text
from tl_dist.terminal.console import Console


def compare(first: Path, second: Path, split: str) -> dict[str, Any]:
    """Return `figures.paired` of the predictions that the runs keep.

    Refuse (65) runs that were evaluated on different examples, and (78) a run that other users could have changed.
    """
    for run in (first, second):
        refuse_unsafe(run)
        refuse_unsafe_below(run)
    a, b = (predictions.load(predictions.file_of(run, split)) for run in (first, second))
    if len(a.targets) or len(b.targets):
        what = "a paired test of classes needs one class for each image, and these runs give numbers or labels."
        raise Refusal(what, fix="compare the intervals of 'tl-dist eval' instead.", code=ExitCode.USAGE)
    order_a, order_b = np.argsort(a.ids), np.argsort(b.ids)
    same = len(a.ids) == len(b.ids) and (a.ids[order_a] == b.ids[order_b]).all()
    if not same or (a.labels[order_a] != b.labels[order_b]).any():
        shared = len(np.intersect1d(a.ids, b.ids))
        raise Refusal(
            f"{first} and {second} were not evaluated on the same examples: {len(a.ids)} and {len(b.ids)} "
            f"in '{split}', {shared} of them in both{', with other labels' if same else ''}.",
            fix="train both with the same data section (split_seed and fractions).",
            code=ExitCode.DATA,
        )
    groups = clusters.shared([(a.groups, order_a), (b.groups, order_b)])
    return figures.paired(a.labels[order_a], a.probabilities[order_a], b.probabilities[order_b], groups)


def compare_corrupted(first: Path, second: Path, split: str) -> dict[str, Any]:
    """Return `robustness.compared` of what the runs keep. Refuse (65) different images or corruptions."""
    a, b = (robustness.load(robustness.file_of(run, split)) for run in (first, second))
    try:
        return robustness.compared(a, b)
    except ValueError as error:
        what = f"{first} and {second} were not evaluated on the same corrupted images: {error}."
        fix = "run tl-dist eval with the same --corruptions, --severity and --split for both."
        raise Refusal(what, fix=fix, code=ExitCode.DATA) from error


def show(result: Mapping[str, Any], names: tuple[str, str], console: Console) -> None:
    """Print both accuracies, the difference with its interval, and the test."""
    for name, accuracy in zip(names, result["accuracies"], strict=True):
        console.say(f"{name}: accuracy {accuracy:.4f} of {result['num_examples']:,} examples")
    interval = text.interval(result["interval"], result.get("interval_by", "paired bootstrap"), "+.4f")
    console.say(f"difference {result['difference']:+.4f} | {interval} | {text.paired_test(result)}", style="bold")
    console.say(f"right in one run only: {result['only_first']:,} and {result['only_second']:,}")


def show_corrupted(result: Mapping[str, Any], names: tuple[str, str], say: Callable[[str], None]) -> None:
    """Print the errors side by side, the mean corruption error, and whether the runs differ."""
    for name, first, second, ratio in zip(result["names"], *result["errors"], result["ratios"], strict=True):
        say(f"{name}: error {first:.4f} and {second:.4f}, ratio {text.figure(ratio)}")
    if result["mce"] is not None:
        say(f"mean corruption error of {names[1]} relative to {names[0]}, not to AlexNet: {result['mce']:.4f}")
    if None not in result["mce_alexnet"]:
        first, second = result["mce_alexnet"]
        say(f"mCE by AlexNet's errors {first:.4f} and {second:.4f}; {robustness.NOT_PUBLISHED}")
    if result["difference"] is not None:
        by = result.get("interval_by", f"paired bootstrap over {result['num_examples']:,} examples")
        interval = text.interval(result["interval"], by, "+.4f")
        say(f"difference of the mean error {result['difference']:+.4f} | {interval}")
