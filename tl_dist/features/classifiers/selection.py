"""Choose l2 and layers of a logistic regression by folds within its own training examples. No TensorFlow.

A caller who tests the classifier on other examples passes only the training examples (nested cross-validation), so
held-out examples cannot influence the choice. The folds are fitted as one stacked problem, from the strongest l2 to the
weakest, each from the solution before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tl_dist.features import classifiers
from tl_dist.features.classifiers.regressions import Problems, Watch, unwatched
from tl_dist.scores import figures

GRID = tuple(float(f"{10 ** (k / 2):.3g}") for k in range(1, -7, -1))
"""l2 from 3.16 to 0.001, two per decade"""
FOLDS = 5
TOLERANCE = 2e-4  # on the largest entry of the gradient of the mean loss: settings are ranked, not kept
CONSTANT = (
    1e-4  # of its spread over all examples: a feature that varies less within a fold counts as constant there
)
WORSE_IN_A_ROW = 2  # losses after which weaker l2 are not tried


@dataclass(frozen=True, eq=False)
class Choice:
    """The setting with the least log loss of held-out examples, over all folds, weighted as in the fit."""

    l2: float
    layers: str
    """the name of the chosen columns"""
    columns: NDArray[np.int64]
    log_loss: float
    num_tried: int
    edge: Literal["least", "greatest"] | None = None
    """set if l2 is at an end of the values to try: the best may lie beyond it"""


def edge_advice(edge: Literal["least", "greatest"]) -> str:
    """Return what an l2 at an end of the tried values means, and what to do."""
    beyond = "smaller" if edge == "least" else "greater"
    return f"the {edge} l2 that was tried: write {beyond} ones as classifier.l2"


def columns_of(layers: Sequence[str], widths: Sequence[int]) -> dict[str, NDArray[np.int64]]:
    """Return the columns of the last layer alone, of the last two and so on, by the names of the layers.

    `widths` are the numbers of columns of the layers, in the order of the features.
    """
    starts = np.cumsum([0, *widths])
    return {
        " ".join(layers[first:]): np.arange(starts[first], starts[-1])
        for first in reversed(range(len(layers)))
    }


def choose(
    values: NDArray[np.float32],
    evaluated: NDArray[np.float32],
    labels: NDArray[np.int32],
    fold: NDArray[np.int64],
    *,
    l2: Sequence[float] = GRID,
    columns: Mapping[str, NDArray[np.int64]] | None = None,
    scaling: str = "standardize",
    class_weights: Sequence[float] | None = None,
    weights: classifiers.Weights | None = None,
    watch: Watch = unwatched,
) -> Choice:
    """Return the best of `l2` and of `columns` (default: all) for logistic regression on these examples.

    `values` [examples, views, features] are fitted. `evaluated` [examples, views, features] are the same examples as
    they are evaluated, by the mean of the probabilities over views. `fold` [examples] numbers, from 0, which are held
    out together. `weights` [examples], above 0, count in the fits and in the log loss.
    """
    columns = columns or {"all": np.arange(values.shape[-1])}
    counts = _about_one(weights, len(labels))
    loss_weights = classifiers.in_loss(labels, class_weights, counts)
    present = np.unique(labels)
    numbers = np.searchsorted(present, labels).astype(np.int32)
    choices: list[Choice] = []
    for name, subset in columns.items():
        problem = _Folds(
            values[:, :, subset], evaluated[:, :, subset], numbers, fold, loss_weights, scaling, watch, counts
        )
        best, worse = np.inf, 0
        for strength in sorted(set(l2), reverse=True):
            predicted = problem.probabilities(strength)
            loss = figures.log_loss(numbers, predicted, loss_weights)
            choices.append(Choice(strength, name, subset, loss, 0))
            worse = 0 if loss < best else worse + 1
            best = min(best, loss)
            if worse == WORSE_IN_A_ROW or len(present) == 1:
                break
    best_choice = min(choices, key=lambda choice: choice.log_loss)
    edge: Literal["least", "greatest"] | None = None
    if len(present) > 1 and min(l2) < max(l2) and best_choice.l2 in (min(l2), max(l2)):
        edge = "least" if best_choice.l2 == min(l2) else "greatest"
    return replace(best_choice, num_tried=len(choices), edge=edge)


def held_out_classes(
    values: NDArray[np.float32],
    labels: NDArray[np.int32],
    fold: NDArray[np.int64],
    l2: float,
    watch: Watch = unwatched,
    weights: classifiers.Weights | None = None,
) -> NDArray[np.int32]:
    """Return the class of each example, [examples], as predicted by the regression of the other folds."""
    present, numbers = np.unique(labels, return_inverse=True)
    numbers, counts = numbers.astype(np.int32), _about_one(weights, len(labels))
    problem = _Folds(values, values, numbers, fold, counts, "standardize", watch, counts)
    return present[problem.probabilities(l2).argmax(axis=1)]


def _about_one(weights: classifiers.Weights | None, num: int) -> classifiers.Weights:
    """Scale weights to a mean of about 1, so that float32 can hold their sums."""
    if weights is None:
        return np.ones(num)
    return np.maximum(weights / weights.mean(), np.finfo(np.float32).tiny)


class _Folds:
    """The classifiers of all folds as one problem, whose solution is the start for the next l2.

    Each scales the features by its own training rows. `weights` of the examples in the loss include their classes',
    `counts` do not.
    """

    def __init__(
        self,
        values: Any,
        evaluated: Any,
        labels: Any,
        fold: Any,
        weights: NDArray[Any],
        scaling: str,
        watch: Watch,
        counts: NDArray[Any],
    ) -> None:
        _, views, width = values.shape
        rows, self._evaluated, self._fold = values.reshape(-1, width), evaluated, fold
        if scaling == "standardize":
            # First by all rows, so that float32 loses no feature, however far from 0 or small beside the others.
            moments = classifiers.moments(rows, counts.repeat(views))
            centre, unit = (np.float32(moment) for moment in moments)
            rows, self._evaluated = ((x - centre) / unit for x in (rows, evaluated))
        rows = np.ascontiguousarray(rows, np.float32)
        self._evaluated = self._evaluated.astype(np.float32)
        self._num_classes = max(2, int(labels.max()) + 1)
        problems = np.arange(fold.max() + 1)
        in_training = (fold[:, None] != problems).repeat(views, axis=0).astype(np.float32)  # [rows, Q]
        row_counts = in_training * counts.repeat(views).astype(np.float32)[:, None]
        total = row_counts.sum(axis=0)
        share = in_training * weights.repeat(views).astype(np.float32)[:, None] / total
        mean, spread = (filled((width, len(problems)), np.float32) for filled in (np.zeros, np.ones))
        if scaling == "standardize":
            mean = rows.T @ row_counts / total
            square = (rows**2).T @ row_counts / total - mean**2
            spread = np.sqrt(np.maximum(square, 0))
            spread[spread < CONSTANT] = np.inf  # in the training rows of this fold
        self._problems = Problems(rows, labels.repeat(views), share, mean, spread, watch)
        self._solution = self._problems.start

    def probabilities(self, l2: float) -> figures.Probabilities:
        """Return [examples, classes], each example's by the classifier that was not fitted to it."""
        self._solution = self._problems.minimum(l2, self._solution, TOLERANCE).at
        kernel, bias = self._problems.map(self._solution)
        num, views, width = self._evaluated.shape
        probabilities = np.zeros((num, self._num_classes))
        for k in range(kernel.shape[1]):
            held_out = self._fold == k
            logits = self._evaluated[held_out].reshape(-1, width) @ kernel[:, k] + bias[k]
            if self._problems.num_logits == 1:
                logits = np.concatenate([-logits / 2, logits / 2], axis=1)
            predicted = figures.softmax(logits).reshape(-1, views, probabilities.shape[1])
            probabilities[held_out] = predicted.mean(axis=1)
        return probabilities
