"""What the evaluation of a split gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tl_dist.scores.clusters import OfClasses

NAMED = 10  # classes in a line


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures over every example of a split, each counted once."""

    split: str
    num_examples: int
    num_correct: int
    mean_loss: float
    confusion: NDArray[np.int64]  # [true class, predicted class]
    logits: NDArray[np.float32] | None = field(default=None, repr=False)
    """[examples, classes] in the order of the split, on rank 0; None elsewhere, and where there are too many"""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """what `figures.figures` says of them, on rank 0"""
    class_intervals: OfClasses = None
    """those of recalls, on rank 0"""

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_examples


def never_seen(
    trained: ArrayLike, labels: NDArray[np.int32], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Each class that has examples here, how many, and none among the labels that were `trained` on."""
    names, counts = np.unique(labels[~np.isin(labels, trained)], return_counts=True)
    found = zip(names.tolist(), counts.tolist(), strict=True)
    return [{"class": class_names[k], "num_examples": n} for k, n in found]


def never_seen_line(classes: Sequence[Mapping[str, Any]], where: str = "in training") -> str:
    """The same for people: "never seen in training: dog (20 images), which can hardly be right"."""
    counts = [(one["class"], one["num_examples"]) for one in classes]
    each = ", ".join(f"{name} ({n:,} image{'s' * (n != 1)})" for name, n in counts[:NAMED])
    each += f" and {len(counts) - NAMED} classes more" if counts[NAMED:] else ""
    return f"never seen {where}: {each}, which can hardly be right; each adds at most 36 to the log loss"
