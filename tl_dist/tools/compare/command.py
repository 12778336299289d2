"""`tl-dist compare`: whether two runs differ on the same examples, by a paired test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_dist.files.private import refuse_unsafe, refuse_unsafe_below
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import clusters, figures, predictions

if TYPE_CHECKING:
    from tl_dist.terminal.console import Console


def compare(first: Path, second: Path, split: str) -> dict[str, Any]:
    """The paired test of `figures.paired`, on the predictions that the runs keep. Refuses (65) other examples, and
    (78) a run that others could have changed."""
    for run in (first, second):
        refuse_unsafe(run)
        refuse_unsafe_below(run)
    a, b = (predictions.load(predictions.file_of(run, split)) for run in (first, second))
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


def show(found: dict[str, Any], names: tuple[str, str], console: Console) -> None:
    """Both accuracies, the difference with its interval, and the test."""
    for name, accuracy in zip(names, found["accuracies"], strict=True):
        console.say(f"{name}: accuracy {accuracy:.4f} of {found['num_examples']:,} examples")
    low, high = found["interval"]
    console.say(
        f"difference {found['difference']:+.4f} | 95 % interval {low:+.4f} to {high:+.4f} "
        f"({found.get('interval_by', 'paired bootstrap')}) | "
        f"{found.get('test', 'exact McNemar test')} p = {found['p_value']:.3g}",
        style="bold",
    )
    console.say(f"right in one alone: {found['only_first']:,} and {found['only_second']:,}")
