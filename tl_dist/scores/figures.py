"""Figures of a classifier from labels and probabilities, in NumPy: scikit-learn would take 0.8 s to import."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores import clusters

Labels = NDArray[np.int32]
Probabilities = NDArray[np.float64]  # [examples, classes]; rows sum to 1
Said = NDArray[np.floating]  # the same, of any precision, as in a file

Judge = Callable[..., dict[str, Any]]
"""(labels, probabilities, groups) -> figures by name: `figures`, or those of another task"""

NUM_BINS = 15
TOP_CLASSES = 20  # with more classes than this, top-5 accuracy is reported as well
CONFIDENCE, wilson = clusters.CONFIDENCE, clusters.wilson
RESAMPLES = 10_000
LEAST = float(np.finfo(np.float64).eps)
"""lower bound of a true class's probability in the log loss, as in scikit-learn: no example costs more than 36"""
BLOCK = 1 << 20  # probabilities that are processed together: 8 MiB


def softmax(logits: NDArray[Any]) -> Probabilities:
    """Return float64 probabilities for logits [examples, classes]."""
    from scipy.special import softmax as of_rows

    return np.asarray(of_rows(logits.astype(np.float64), axis=-1))


class Softmax:
    """Lazy probabilities of logits float32 [examples, classes] at a temperature, never in memory as a whole.

    `[rows]` and `[:, columns]`, both slices, are computed on access, as the float64 of `softmax`.
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
        with np.errstate(invalid="ignore"):  # a row with an infinite logit becomes NaN
            shares = self._logits[place].astype(np.float64) - self._largest[rows]
            np.exp(shares if self._temperature == 1 else shares / self._temperature, out=shares)
        shares /= self._sums[rows]
        return np.asarray(shares)

    def in_place(self) -> NDArray[np.float32]:
        """Return all as float32 in the memory of the logits: neither these nor this object can be used again."""
        for rows in blocks(*self.shape):
            self._logits[rows] = self[rows]
        return self._logits


def figures(labels: Labels, probabilities: Said | Softmax, groups: clusters.Groups = ()) -> dict[str, Any]:
    """Return every figure of a set of examples by name; None if a figure is undefined.

    F1 is over the classes that occur in labels or predictions, balanced accuracy over the classes in the labels.
    ROC-AUC is one class against the rest, weighted by the examples of each class, and needs an example of every class.
    `interval` is Wilson's for the accuracy: it covers this one split and says nothing about other splits. If examples
    have `groups`, it is `clusters.interval`, and `interval_by` says so.
    """
    num_classes = probabilities.shape[1]
    predicted, confidence, of_true, hits, num_above = confidences(labels, probabilities)
    finite, many = bool(np.isfinite(confidence).all()), num_classes > TOP_CLASSES
    right, true, guesses = (np.bincount(of, minlength=num_classes) for of in (labels[hits], labels, predicted))
    recalls = right[true > 0] / true[true > 0]
    f1 = 2 * right / np.maximum(true + guesses, 1)
    return {
        "accuracy": int(hits.sum()) / len(labels),
        "interval": clusters.interval(hits, of := clusters.numbers(groups)),
        **({} if of is None else clusters.by_design_effect(of)),
        **({"top5": float((num_above < 5).mean()) if finite else None} if many else {}),
        "balanced_accuracy": float(recalls.mean()),
        "macro_f1": float(f1[true + guesses > 0].mean()),
        "weighted_f1": float(np.average(f1, weights=true)),
        "mcc": _correlation(right, true.astype(np.float64), guesses.astype(np.float64)),
        "roc_auc": roc_auc(labels, probabilities) if finite else None,
        "log_loss": mean_surprise(of_true) if finite else None,
        "ece": calibration_error(confidence, hits) if finite else None,
    }


def _correlation(right: NDArray[Any], true: NDArray[np.float64], guesses: NDArray[np.float64]) -> float:
    """Return Matthews' correlation from the counts of each class (Gorodkin 2004, equation 8); 0 if it is undefined."""
    num = true.sum()
    spread = (num**2 - (true**2).sum()) * (num**2 - (guesses**2).sum())
    return float((right.sum() * num - (true * guesses).sum()) / np.sqrt(spread)) if spread else 0.0


class Confidences(NamedTuple):
    """For each example: the predicted class, its probability, that of the true class, and whether it is correct."""

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    of_true: NDArray[np.float64]
    hits: NDArray[np.bool_]
    num_above: NDArray[np.int64]
    """classes ranked above the true one: the more probable, and of equal ones the higher numbers (as scikit-learn)"""


def confidences(labels: Labels, probabilities: Said | Softmax) -> Confidences:
    """Compare labels with probabilities, block by block."""
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
    """Return slices of the range 0 to `num`, of about BLOCK entries each, where a row has `width` entries."""
    size = max(1, BLOCK // width)
    return (slice(first, first + size) for first in range(0, num, size))


def largest(probabilities: NDArray[np.float32], top: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the `top` classes of each row and their probabilities, most probable first; ties go to the lower class."""
    top = min(top, probabilities.shape[1])
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return order.astype(np.int32), np.take_along_axis(probabilities, order, axis=1)


def by_class(confusion: NDArray[np.int64], intervals: clusters.OfClasses = None) -> list[dict[str, Any]]:
    """Return examples, recall with interval (Wilson's, or of `intervals`), precision and F1 of each class, or None."""
    return of_classes(np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0), intervals)


def of_classes(
    hits: NDArray[np.int64],
    true: NDArray[np.int64],
    predicted: NDArray[np.int64],
    intervals: clusters.OfClasses = None,
) -> list[dict[str, Any]]:
    """Return the same from the counts of correct, true and predicted examples of each class."""
    return [
        {
            "num_examples": n,
            "recall": hit / n if n else None,
            "interval": intervals[k] if intervals is not None else wilson(hit, n) if n else None,
            "precision": hit / guesses if guesses else None,
            "f1": 2 * hit / (n + guesses) if n + guesses else None,
        }
        for k, (hit, n, guesses) in enumerate(zip(hits.tolist(), true.tolist(), predicted.tolist(), strict=True))
    ]


def largest_errors(confusion: NDArray[np.int64], most: int) -> list[tuple[int, int, int]]:
    """Return the most frequent confusions as (true class, predicted class, count); ties in the matrix's order."""
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    largest = np.argsort(-errors, axis=None, kind="stable")[:most]
    pairs = zip(*(part.tolist() for part in np.unravel_index(largest, errors.shape)), strict=True)
    return [(i, k, int(errors[i, k])) for i, k in pairs if errors[i, k]]


def roc_auc(labels: Labels, probabilities: Said | Softmax) -> float | None:
    """Return the area under the ROC curve; None if a class has no example, or there is only one class.

    With more than two classes, each against the rest.
    """
    num_classes = probabilities.shape[1]
    if num_classes < 2 or len(np.unique(labels)) < num_classes:
        return None
    if num_classes == 2:
        return area_under_roc(probabilities[:, 1:].ravel(), labels == 1)
    areas = np.empty(num_classes)
    for columns in blocks(num_classes, len(labels)):
        for k, scores in enumerate(probabilities[:, columns].T, start=columns.start):
            areas[k] = area_under_roc(scores, labels == k)
    return float(np.average(areas, weights=np.bincount(labels)))


def area_under_roc(scores: Said, is_positive: NDArray[np.bool_]) -> float:
    """Return the area from the mean ranks of the positive examples (Mann and Whitney 1947; Bamber 1975)."""
    ascending, positive = np.sort(scores), scores[is_positive]
    below, up_to = (np.searchsorted(ascending, positive, side) for side in ("left", "right"))
    num = len(positive)
    return float(((below + up_to + 1).sum() / 2 - num * (num + 1) / 2) / (num * (len(scores) - num)))


def log_loss(labels: Labels, probabilities: Probabilities, weights: NDArray[np.float64] | None = None) -> float:
    """Return the mean, by `weights` [examples], of -log of the true class's probability, which is at least `LEAST`."""
    return mean_surprise(probabilities[np.arange(len(labels)), labels], weights)


def mean_surprise(of_true: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> float:
    """Return the log loss of examples whose true classes have these probabilities."""
    return float(np.average(-np.log(np.maximum(of_true.astype(np.float64), LEAST)), weights=weights))


def calibration_error(confidence: NDArray[np.float64], hits: NDArray[np.bool_], num_bins: int = NUM_BINS) -> float:
    """Return the expected calibration error over bins of equal width (Guo et al. 2017, arXiv 1706.04599)."""
    gaps = np.bincount(bin_of(confidence, num_bins), weights=hits - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(hits))


def bin_of(confidence: NDArray[np.float64], num_bins: int) -> NDArray[np.int64]:
    """Return the number of the bin of each confidence; a value on a bound is in the lower bin."""
    return np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)


def best_threshold(labels: Labels, probabilities: Probabilities) -> float:
    """Return the least probability at which to predict class 1: most examples correct, ties nearest to 1/2.

    For two classes and validation examples only: on a test split it would be chosen by the test data.
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
    """Return the accuracy of predicting class 1 from this probability on."""
    return float(((probabilities[:, 1] >= threshold) == (labels == 1)).mean())


def corrected_interval(accuracies: Sequence[float], test_to_train: float) -> list[float]:
    """Return both ends of the 95 % interval of a mean over resampled splits (Nadeau and Bengio 2003, Mach. Learn. 52).

    `test_to_train` is n2 / n1, the examples tested over those trained on, as a mean over folds. The training parts
    overlap, so the plain t interval would be far too narrow.
    """
    from scipy.special import stdtrit

    num, mean = len(accuracies), float(np.mean(accuracies))
    spread = np.var(accuracies, ddof=1) * (1 / num + test_to_train)
    half = float(stdtrit(num - 1, (1 + CONFIDENCE) / 2) * np.sqrt(spread))
    return [mean - half, mean + half]


def accuracy_interval(accuracies: Sequence[float], test_to_train: float, at_most_1: bool = True) -> list[float]:
    """Return `corrected_interval` clipped to 0 and 1, which it exceeds for few folds; to 0 alone for an error."""
    return np.clip(corrected_interval(accuracies, test_to_train), 0, 1 if at_most_1 else None).tolist()


def paired(labels: Labels, first: Said, second: Said, groups: clusters.Groups = ()) -> dict[str, Any]:
    """Compare two classifiers on the same examples: exact McNemar test, and an interval of the difference.

    `interval` is the 95 % percentile bootstrap of accuracy(second) - accuracy(first) over examples. If these have
    `groups`, both are over groups instead (`clusters.paired`), and `test` and `interval_by` say so.
    """
    from scipy.special import bdtr

    a, b = first.argmax(axis=1) == labels, second.argmax(axis=1) == labels
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    apart = only_first + only_second
    num = len(labels)
    shares = [only_first / num, only_second / num, 1 - apart / num]
    draws = np.random.default_rng(0).multinomial(num, shares, size=RESAMPLES)
    of = clusters.numbers(groups)
    return {
        "num_examples": num,
        "accuracies": [float(a.mean()), float(b.mean())],
        "difference": (only_second - only_first) / num,
        "interval": clusters.percentiles((draws[:, 1] - draws[:, 0]) / num),
        "only_first": only_first,
        "only_second": only_second,
        "p_value": min(1.0, 2 * float(bdtr(min(only_first, only_second), apart, 0.5))),
        **({} if of is None else clusters.paired(b.astype(np.int64) - a, of)),
    }
