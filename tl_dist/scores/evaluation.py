"""The result of evaluating a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tl_dist.scores.clusters import OfClasses


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures over every example of a split, each counted once."""

    split: str
    num_examples: int
    num_correct: int
    mean_loss: float
    confusion: NDArray[np.int64]  # [true class, predicted class]
    logits: NDArray[np.float32] | None = field(default=None, repr=False)
    """[examples, classes] in the order of the split, on rank 0; None on other ranks, and if there are too many"""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """`figures.figures` of these examples, on rank 0"""
    class_intervals: OfClasses = None
    """intervals of the recalls, on rank 0"""

    @property
    def accuracy(self) -> float:
        """Return the fraction of examples that are correct."""
        return self.num_correct / self.num_examples


def never_seen(
    trained: ArrayLike, labels: NDArray[np.int32], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return each class of `labels` that is not among the `trained` labels, and its number of examples."""
    classes, counts = np.unique(labels[~np.isin(labels, trained)], return_counts=True)
    pairs = zip(classes.tolist(), counts.tolist(), strict=True)
    return [{"class": class_names[k], "num_examples": n} for k, n in pairs]
