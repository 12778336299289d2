"""Compute the weights of classes in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def balanced_class_weights(
    labels: Sequence[int] | np.ndarray, num_classes: int, weights: np.ndarray | None = None
) -> list[float]:
    """Return num_examples / (classes that occur * examples of the class): their mean over the examples is 1.

    A class without examples has weight 0. Examples with `weights` are counted by these, as by scikit-learn's
    compute_class_weight, so that an example of weight 2 counts like two equal ones.
    """
    counts = np.bincount(np.asarray(labels), weights, num_classes)
    present, total = np.count_nonzero(counts), float(counts.sum())
    return [total / (present * n) if n else 0.0 for n in counts.tolist()]
