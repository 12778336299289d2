"""Ordered grades, such as those of a disease or a defect: a mistake by two grades is worse than one by one.

A model gives a probability to each grade, so all that takes probabilities of classes takes those of grades.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import clusters
from tl_dist.scores import figures as of_classes
from tl_dist.scores.figures import Labels, Said, Softmax
from tl_dist.tasks import classification
from tl_dist.tasks.classification import WORDS, agree, answers, entries, given, loss

__all__ = ["WORDS", "agree", "answers", "check", "entries", "figures", "given", "loss", "remarks"]

_SAMPLES = 2_000  # of the bootstrap


def check(class_names: Sequence[str], grades: Sequence[str], truth: NDArray[Any]) -> None:
    """Refuse (64) classes whose order is unknown: no ascending numbers, and not ordered by the config's `grades`."""
    classification.check(class_names, grades, truth)
    try:
        numbers = [float(name) for name in class_names]
    except ValueError:
        numbers = []
    if not grades and (numbers != sorted(numbers) or not numbers):
        in_order = ", ".join(sorted(class_names, key=lambda name: (len(name), name)) if numbers else class_names)
        what = f"the order of the grades {', '.join(class_names)} is unknown."
        fix = f"write them from the lowest to the highest below 'data:', such as 'grades: [{in_order}]'."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)


def remarks(class_names: Sequence[str]) -> list[str]:
    """Return nothing: the order was given."""
    return []


def figures(labels: Labels, probabilities: Said | Softmax, groups: clusters.Groups = ()) -> dict[str, Any]:
    """Return the figures of a classification, and of the most probable grades two more with intervals.

    `quadratic_kappa` is Cohen's kappa with weights by the square of the distance (Cohen 1968), undefined if all grades
    are one; `mae` is the mean distance in grades. The intervals are percentiles of a bootstrap over examples, or over
    groups where examples have them.
    """
    own = of_classes.figures(labels, probabilities, groups)
    num, of = probabilities.shape[1], clusters.numbers(groups)
    pairs = labels.astype(np.int64) * num + of_classes.confidences(labels, probabilities).predicted
    whole = np.bincount(pairs, minlength=num * num)
    distance = np.abs(np.subtract.outer(np.arange(num), np.arange(num))).ravel()
    resampled = _resampled(pairs, of, whole)
    measures: dict[str, Callable[[NDArray[Any]], NDArray[np.float64]]] = {
        "quadratic_kappa": lambda counts: _quadratic_kappa(counts, num),
        "mae": lambda counts: counts @ distance / counts.sum(axis=1),
    }
    for name, measure in measures.items():
        value, values = float(measure(whole[None])[0]), measure(resampled)
        defined = bool(np.isfinite(value))
        own[name] = value if defined else None
        own[f"{name}_interval"] = clusters.percentiles(values[np.isfinite(values)]) if defined else None
    return own


def _resampled(pairs: NDArray[np.int64], of: clusters.Numbers | None, whole: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the counts [samples, pairs] of samples with replacement of all examples, or of all groups."""
    rng = np.random.default_rng(0)
    if of is None:
        return rng.multinomial(len(pairs), whole / len(pairs), _SAMPLES)
    num = int(of.max()) + 1
    tables = np.zeros((num, len(whole)), np.int64)
    np.add.at(tables, (of, pairs), 1)
    return np.stack([np.bincount(rng.integers(num, size=num), minlength=num) @ tables for _ in range(_SAMPLES)])


def _quadratic_kappa(counts: NDArray[Any], num: int) -> NDArray[np.float64]:
    """Return the kappa of each row of counts [samples, true grade * predicted grade]; NaN where it is undefined."""
    tables = counts.reshape(-1, num, num).astype(np.float64)
    squares = np.subtract.outer(np.arange(num), np.arange(num)) ** 2
    expected = tables.sum(axis=2)[:, :, None] * tables.sum(axis=1)[:, None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        total = tables.sum(axis=(1, 2))
        return 1 - (tables * squares).sum(axis=(1, 2)) * total / (expected * squares).sum(axis=(1, 2))
