"""Figures of a classifier from labels and probabilities, by scikit-learn and SciPy, which are imported on use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tl_dist.scores import clusters

Labels = NDArray[np.int32]
Probabilities = NDArray[np.float64]
"""[examples, classes]; rows sum to 1"""
Said = NDArray[np.floating]
"""the same as a file has them"""

NUM_BINS = 15
TOP_CLASSES = 20
"""with more classes than this it is also said how often the true one is among the first five"""
CONFIDENCE, wilson = clusters.CONFIDENCE, clusters.wilson
RESAMPLES = 10_000
LEAST = float(np.finfo(np.float64).eps)
"""of the probability of a true class in a log loss, as in scikit-learn: no example costs more than 36"""
BLOCK = 1 << 20  # probabilities that are looked at together: 8 MiB


def softmax(logits: NDArray[Any]) -> Probabilities:
    """float64 probabilities of logits [examples, classes]."""
    from scipy.special import softmax as of_rows

    return np.asarray(of_rows(logits.astype(np.float64), axis=-1))


class Softmax:
    """The probabilities of logits float32 [examples, classes] at a temperature, never in memory as a whole.

    `[rows]` and `[:, columns]`, both slices, are computed when they are asked for: the float64 that `softmax` gives.
    """

    def __init__(self, logits: NDArray[np.float32], temperature: float = 1.0) -> None:
        self.shape: tuple[int, ...] = logits.shape
        self._logits = logits
        self._temperature = temperature
        self._largest = logits.max(axis=1, keepdims=True).astype(np.float64)
        self._sums = np.ones_like(self._largest)
        for rows in blocks(*self.shape):
            self._sums[rows] = self[rows].sum(axis=1, keepdims=True)

    def __getitem__(self, place: slice | tuple[slice, slice]) -> Probabilities:
        rows = place[0] if isinstance(place, tuple) else place
        with np.errstate(invalid="ignore"):  # an infinite logit: its row is not a number
            shares = self._logits[place].astype(np.float64) - self._largest[rows]
            np.exp(shares if self._temperature == 1 else shares / self._temperature, out=shares)
        shares /= self._sums[rows]
        return np.asarray(shares)

    def in_place(self) -> NDArray[np.float32]:
        """All of them as float32, in the memory of the logits: neither these nor this object can be used again."""
        for rows in blocks(*self.shape):
            self._logits[rows] = self[rows]
        return self._logits


def figures(labels: Labels, probabilities: Said | Softmax, groups: clusters.Groups = ()) -> dict[str, Any]:
    """Every figure of one set of examples by name; None where one is not defined.

    F1 is over the classes that occur among labels or predictions, balanced accuracy over those among the labels.
    ROC-AUC is one class against the rest, weighted by the examples of each, and needs an example of every class.
    `interval` is Wilson's for the accuracy: it says how well this one split is known, nothing about other splits. Where
    examples have `groups`, it is `clusters.interval`, and `interval_by` says so.
    """
    from sklearn.metrics import f1_score, matthews_corrcoef, recall_score

    predicted, confidence, of_true, hits, num_above = confidences(labels, probabilities)
    num_correct = int(hits.sum())
    finite = bool(np.isfinite(confidence).all())
    present, many = np.unique(labels), probabilities.shape[1] > TOP_CLASSES
    one_alone = len(np.union1d(present, predicted)) == 1  # scikit-learn says 0 of it, and warns
    return {
        "accuracy": num_correct / len(labels),
        "interval": clusters.interval(hits, of := clusters.numbers(groups)),
        **({} if of is None else clusters.by_design_effect(of)),
        **({"top5": float((num_above < 5).mean()) if finite else None} if many else {}),
        "balanced_accuracy": float(
            recall_score(labels, predicted, labels=present, average="macro", zero_division=0)
        ),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "weighted_f1": float(f1_score(labels, predicted, average="weighted", zero_division=0)),
        "mcc": 0.0 if one_alone else float(matthews_corrcoef(labels, predicted)),
        "roc_auc": roc_auc(labels, probabilities) if finite else None,
        "log_loss": mean_surprise(of_true) if finite else None,
        "ece": calibration_error(confidence, hits) if finite else None,
    }


class Confidences(NamedTuple):
    """Of each example: the predicted class and its probability, that of the true class, and whether these are one."""

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    of_true: NDArray[np.float64]
    hits: NDArray[np.bool_]
    num_above: NDArray[np.int64]
    """classes before the true one: the more probable ones, and of equal ones those of a higher number (scikit-learn)"""


def confidences(labels: Labels, probabilities: Said | Softmax) -> Confidences:
    """Block by block."""
    predicted, num_above = np.empty(len(labels), np.int64), np.empty(len(labels), np.int64)
    confidence, of_true = np.empty(len(labels)), np.empty(len(labels))
    for rows in blocks(*probabilities.shape):
        block = probabilities[rows]
        predicted[rows], confidence[rows] = block.argmax(axis=1), block.max(axis=1)
        of_true[rows] = block[np.arange(len(block)), labels[rows]]
        before = np.arange(block.shape[1]) > labels[rows, None]
        truth = of_true[rows, None]
        num_above[rows] = ((block > truth) | ((block == truth) & before)).sum(axis=1)
    return Confidences(predicted, confidence, of_true, predicted == labels, num_above)


def blocks(num: int, width: int) -> Iterator[slice]:
    """0 to `num` in pieces of about BLOCK entries, where each counts `width`."""
    size = max(1, BLOCK // width)
    return (slice(first, first + size) for first in range(0, num, size))


def largest(probabilities: NDArray[np.float32], top: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Of each row the `top` classes, most probable first, and their probabilities; of equal ones the lower class."""
    top = min(top, probabilities.shape[1])
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return order.astype(np.int32), np.take_along_axis(probabilities, order, axis=1)


def by_class(confusion: NDArray[np.int64], intervals: clusters.OfClasses = None) -> list[dict[str, Any]]:
    """Of each class: its examples, recall with its 95 % interval, precision and F1; None where not defined.

    The interval is Wilson's, or one of `intervals`, where examples come in groups.
    """
    return of_classes(np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0), intervals)


def of_classes(
    hits: NDArray[np.int64],
    true: NDArray[np.int64],
    predicted: NDArray[np.int64],
    intervals: clusters.OfClasses = None,
) -> list[dict[str, Any]]:
    """The same from how often each class is right, occurs, and is predicted."""
    return [
        {
            "num_examples": n,
            "recall": hit / n if n else None,
            "interval": intervals[k] if intervals is not None else wilson(hit, n) if n else None,
            "precision": hit / said if said else None,
            "f1": 2 * hit / (n + said) if n + said else None,
        }
        for k, (hit, n, said) in enumerate(zip(hits.tolist(), true.tolist(), predicted.tolist(), strict=True))
    ]


def largest_errors(confusion: NDArray[np.int64], most: int) -> list[tuple[int, int, int]]:
    """(true class, what was said, how often) of what was confused most often; of equal counts in the matrix's order."""
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    largest = np.argsort(-errors, axis=None, kind="stable")[:most]
    pairs = zip(*(part.tolist() for part in np.unravel_index(largest, errors.shape)), strict=True)
    return [(i, k, int(errors[i, k])) for i, k in pairs if errors[i, k]]


def roc_auc(labels: Labels, probabilities: Said | Softmax) -> float | None:
    """Area under the ROC curve; None where a class has no example, or there is one alone.

    Of more than two classes each against the rest: scikit-learn would need several matrices of all probabilities.
    """
    from sklearn.metrics import roc_auc_score

    num_classes = probabilities.shape[1]
    if num_classes < 2 or len(np.unique(labels)) < num_classes:
        return None
    if num_classes == 2:
        return float(roc_auc_score(labels, probabilities[:, 1:].ravel()))
    areas = np.empty(num_classes)
    for columns in blocks(num_classes, len(labels)):
        for k, scores in enumerate(probabilities[:, columns].T, start=columns.start):
            areas[k] = _area_under_roc(scores, labels == k)
    return float(np.average(areas, weights=np.bincount(labels)))


def _area_under_roc(scores: Said, is_positive: NDArray[np.bool_]) -> float:
    """From the ranks of the positive examples, ties sharing theirs (Mann and Whitney 1947; Bamber 1975)."""
    ascending, positive = np.sort(scores), scores[is_positive]
    ranks = (
        np.searchsorted(ascending, positive, "left") + np.searchsorted(ascending, positive, "right") + 1
    ) / 2
    num = len(positive)
    return float((ranks.sum() - num * (num + 1) / 2) / (num * (len(scores) - num)))


def log_loss(
    labels: Labels, probabilities: Probabilities, weights: NDArray[np.float64] | None = None
) -> float:
    """Mean negative log probability of the true class, which counts as `LEAST` at least.

    `weights` [examples]: how much each counts in the mean; default: all the same.
    """
    return mean_surprise(probabilities[np.arange(len(labels)), labels], weights)


def mean_surprise(of_true: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> float:
    """The log loss of examples whose true classes have these probabilities."""
    return float(np.average(-np.log(np.maximum(of_true.astype(np.float64), LEAST)), weights=weights))


def calibration_error(
    confidence: NDArray[np.float64], hits: NDArray[np.bool_], num_bins: int = NUM_BINS
) -> float:
    """Expected calibration error over bins of equal width (Guo et al. 2017, arXiv 1706.04599)."""
    gaps = np.bincount(bin_of(confidence, num_bins), weights=hits - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(hits))


def bin_of(confidence: NDArray[np.float64], num_bins: int) -> NDArray[np.int64]:
    """The number of the bin that each confidence lies in, a bound in the lower one."""
    return np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)


def best_threshold(labels: Labels, probabilities: Probabilities) -> float:
    """The probability of class 1 from which on to say 1: most examples right, of equal ones nearest to 1/2.

    For two classes, and for validation examples alone: on a test split it would be a choice by it.
    """
    scores = probabilities[:, 1]
    order = np.sort(np.unique(scores))
    candidates = np.concatenate([[0.0], (order[1:] + order[:-1]) / 2, [1.0 + 1e-9], [0.5]])
    ascending = np.sort(scores[labels == 1])
    others = np.sort(scores[labels == 0])
    right = (len(ascending) - np.searchsorted(ascending, candidates)) + np.searchsorted(others, candidates)
    best = candidates[right == right.max()]
    return float(best[np.abs(best - 0.5).argmin()])


def accuracy_at(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Accuracy of "class 1 from this probability on"."""
    return float(((probabilities[:, 1] >= threshold) == (labels == 1)).mean())


def corrected_interval(accuracies: Sequence[float], test_to_train: float) -> list[float]:
    """Both ends of the 95 % interval of a mean over resampled splits (Nadeau and Bengio 2003, Machine Learning 52).

    `test_to_train` is the size of a test part over that of its training part (see there). The training parts overlap,
    so the plain t interval would be far too narrow.
    """
    from scipy.stats import t

    values = np.asarray(accuracies, np.float64)
    spread = values.var(ddof=1) * (1 / len(values) + test_to_train)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.sqrt(spread))
    return [float(values.mean()) - half, float(values.mean()) + half]


def test_to_train(tested: ArrayLike, trained: ArrayLike) -> float:
    """n2 / n1 of `corrected_interval`, of how many each fold was tested and trained on: of unequal folds the mean."""
    return float(np.divide(tested, trained).mean())


def accuracy_interval(accuracies: Sequence[float], test_to_train: float) -> list[float]:
    """`corrected_interval` within 0 and 1: of few folds t goes far beyond."""
    low, high = corrected_interval(accuracies, test_to_train)
    return [max(0.0, low), min(1.0, high)]


def paired(
    labels: Labels,
    first: Said,
    second: Said,
    groups: clusters.Groups = (),
) -> dict[str, Any]:
    """Whether two classifiers differ on the same examples: exact McNemar test, and an interval of the difference.

    `interval` is the 95 % percentile bootstrap of accuracy(second) - accuracy(first) over examples. Where these have
    `groups`, both are over groups instead, `clusters.paired`, and `test` and `interval_by` say so.
    """
    from scipy.stats import binomtest

    a, b = first.argmax(axis=1) == labels, second.argmax(axis=1) == labels
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    apart = only_first + only_second
    num = len(labels)
    shares = [only_first / num, only_second / num, 1 - apart / num]
    draws = np.random.default_rng(0).multinomial(num, shares, size=RESAMPLES)
    low, high = np.quantile((draws[:, 1] - draws[:, 0]) / num, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    of = clusters.numbers(groups)
    return {
        "num_examples": num,
        "accuracies": [float(a.mean()), float(b.mean())],
        "difference": (only_second - only_first) / num,
        "interval": [float(low), float(high)],
        "only_first": only_first,
        "only_second": only_second,
        "p_value": float(binomtest(only_first, apart).pvalue) if apart else 1.0,
        **({} if of is None else clusters.paired(b.astype(np.int64) - a, of)),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, each corrected for their number (Holm 1979): below 0.05, none is a false alarm
    with a probability of 0.95."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    found = np.empty(len(p_values))
    found[order] = corrected
    return [float(p) for p in found]


def summary_line(found: Mapping[str, Any]) -> str:
    """Figures in one line, for people; those that are not defined are left out."""
    names = {
        "top5": "top-5", "balanced_accuracy": "balanced", "macro_f1": "macro F1", "weighted_f1": "weighted F1",
        "mcc": "MCC", "roc_auc": "ROC-AUC", "log_loss": "log loss", "ece": "ECE",
    }  # fmt: skip
    return " | ".join(f"{names[key]} {found[key]:.3f}" for key in names if found.get(key) is not None)
