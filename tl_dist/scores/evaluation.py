"""What the evaluation of a split gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """[examples, classes] in the order of the split, on rank 0; None elsewhere, and where there are too many"""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """what `figures.figures` says of them, on rank 0"""
    class_intervals: OfClasses = None
    """those of recalls, on rank 0"""

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_examples
