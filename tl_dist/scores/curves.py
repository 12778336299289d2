"""Curves over the threshold of a class, and accuracy by confidence, for charts."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores.clusters import interval
from tl_dist.scores.figures import NUM_BINS, bin_of

MAX_POINTS = 200


class Curve(NamedTuple):
    """Points of a curve, and the area under it."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    area: float


def roc(is_positive: NDArray[np.bool_], scores: NDArray[np.floating]) -> Curve:
    """Return true positive rate (y) by false positive rate (x); both kinds must occur."""
    from sklearn.metrics import auc, roc_curve

    x, y, _ = roc_curve(is_positive, scores)
    return Curve(*_thinned(x, y), float(auc(x, y)))


def precision_recall(is_positive: NDArray[np.bool_], scores: NDArray[np.floating]) -> Curve:
    """Return precision (y) by recall (x), ascending; the area is the average precision, not the trapezoidal area."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    y, x, _ = precision_recall_curve(is_positive, scores)
    return Curve(*_thinned(x[::-1], y[::-1]), float(average_precision_score(is_positive, scores)))


class Bin(NamedTuple):
    """Examples of similar confidence."""

    low: float
    high: float
    num_examples: int
    confidence: float  # their mean
    accuracy: float
    interval: list[float]  # of the accuracy, 95 % (Wilson, or over groups)


def reliability(
    confidence: NDArray[np.floating], hits: NDArray[np.bool_], of: NDArray[np.int64] | None = None
) -> list[Bin]:
    """Return the non-empty bins of `figures.calibration_error`; `of` is the number of the group of each example."""
    numbers = bin_of(np.asarray(confidence, np.float64), NUM_BINS)
    return [
        Bin(
            k / NUM_BINS,
            (k + 1) / NUM_BINS,
            int(inside.sum()),
            float(confidence[inside].mean()),
            float(hits[inside].mean()),
            interval(hits[inside], None if of is None else of[inside]),
        )
        for k in np.unique(numbers).tolist()
        for inside in (numbers == k,)
    ]


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return at most MAX_POINTS of the points, including both ends."""
    chosen = np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(int)
    return x[chosen], y[chosen]
