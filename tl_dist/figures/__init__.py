"""Figures of a classifier from labels and probabilities, by scikit-learn and SciPy, which are imported on use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int32]
Probabilities = NDArray[np.float64]
"""[examples, classes]; rows sum to 1"""

NUM_BINS = 15
CONFIDENCE = 0.95


def softmax(logits: NDArray[Any]) -> Probabilities:
    """float64 probabilities of logits [examples, classes]."""
    from scipy.special import softmax as of_rows

    return np.asarray(of_rows(logits.astype(np.float64), axis=-1))


def figures(labels: Labels, probabilities: Probabilities) -> dict[str, Any]:
    """Every figure of one set of examples by name; None where one is not defined.

    F1 is over the classes that occur among labels or predictions, balanced accuracy over those among the labels.
    ROC-AUC is one class against the rest, weighted by the examples of each, and needs an example of every class.
    `interval` is Wilson's for the accuracy: it says how well this one split is known, nothing about other splits.
    """
    from sklearn.metrics import f1_score, matthews_corrcoef, recall_score

    predicted = probabilities.argmax(axis=1)
    num_correct = int((predicted == labels).sum())
    finite = bool(np.isfinite(probabilities).all())
    present = np.unique(labels)
    return {
        "accuracy": num_correct / len(labels),
        "interval": wilson(num_correct, len(labels)),
        "balanced_accuracy": float(
            recall_score(labels, predicted, labels=present, average="macro", zero_division=0)
        ),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "weighted_f1": float(f1_score(labels, predicted, average="weighted", zero_division=0)),
        "mcc": float(matthews_corrcoef(labels, predicted)),
        "roc_auc": roc_auc(labels, probabilities) if finite else None,
        "log_loss": log_loss(labels, probabilities) if finite else None,
        "ece": calibration_error(labels, probabilities) if finite else None,
    }


def wilson(num_correct: int, num_examples: int) -> list[float]:
    """Both ends of the 95 % interval of a proportion (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(num_correct, num_examples).proportion_ci(CONFIDENCE, method="wilson")
    return [float(found.low), float(found.high)]


def roc_auc(labels: Labels, probabilities: Probabilities) -> float | None:
    """Area under the ROC curve; None where a class has no example."""
    from sklearn.metrics import roc_auc_score

    num_classes = probabilities.shape[1]
    if len(np.unique(labels)) < num_classes:
        return None
    if num_classes == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    return float(roc_auc_score(labels, probabilities, multi_class="ovr", average="weighted"))


def log_loss(labels: Labels, probabilities: Probabilities) -> float:
    """Mean negative log probability of the true class; a probability of 0 counts as the least float64 above it."""
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(true, np.finfo(np.float64).tiny)).mean())


def calibration_error(labels: Labels, probabilities: Probabilities, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error over bins of equal width (Guo et al. 2017, arXiv 1706.04599)."""
    confidence = probabilities.max(axis=1)
    hits = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=hits - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


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

    `test_to_train` is the size of a test part over that of its training part: 1 / (folds - 1) in cross-validation.
    The training parts overlap, so the plain t interval would be far too narrow.
    """
    from scipy.stats import t

    values = np.asarray(accuracies, np.float64)
    spread = values.var(ddof=1) * (1 / len(values) + test_to_train)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.sqrt(spread))
    return [float(values.mean()) - half, float(values.mean()) + half]


def paired(
    labels: Labels, first: Probabilities, second: Probabilities, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Whether two classifiers differ on the same examples: exact McNemar test, and an interval of the difference.

    `interval` is the 95 % percentile bootstrap of accuracy(second) - accuracy(first) over examples.
    """
    from scipy.stats import binomtest

    a, b = first.argmax(axis=1) == labels, second.argmax(axis=1) == labels
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    apart = only_first + only_second
    num = len(labels)
    shares = [only_first / num, only_second / num, 1 - apart / num]
    draws = np.random.default_rng(seed).multinomial(num, shares, size=resamples)
    low, high = np.quantile((draws[:, 1] - draws[:, 0]) / num, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {
        "num_examples": num,
        "accuracies": [float(a.mean()), float(b.mean())],
        "difference": (only_second - only_first) / num,
        "interval": [float(low), float(high)],
        "only_first": only_first,
        "only_second": only_second,
        "p_value": float(binomtest(only_first, apart).pvalue) if apart else 1.0,
    }


def summary_line(found: Mapping[str, Any]) -> str:
    """Figures in one line, for people; those that are not defined are left out."""
    names = {
        "balanced_accuracy": "balanced", "macro_f1": "macro F1", "weighted_f1": "weighted F1", "mcc": "MCC",
        "roc_auc": "ROC-AUC", "log_loss": "log loss", "ece": "ECE",
    }  # fmt: skip
    return " | ".join(f"{names[key]} {found[key]:.3f}" for key in names if found.get(key) is not None)
