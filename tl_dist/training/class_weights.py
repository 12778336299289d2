"""Weights of classes in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def balanced_class_weights(
    labels: Sequence[int] | np.ndarray, num_classes: int, weights: np.ndarray | None = None
) -> list[float]:
    """num_examples / (classes that occur * examples of the class): the mean over the examples is 1.

    0 for a class without examples. The same as scikit-learn's compute_class_weight: where examples have `weights`, they
    are counted by these, so that one of weight 2 is the example twice here, too.
    """
    counts = np.bincount(np.asarray(labels), weights, num_classes)
    present, total = np.count_nonzero(counts), float(counts.sum())
    return [total / (present * n) if n else 0.0 for n in counts.tolist()]
