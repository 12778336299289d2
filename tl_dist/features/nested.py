"""Choose l2 and layers of a logistic regression by folds within its own training examples. No TensorFlow.

Nested cross-validation: the choice is part of the training that is evaluated, so held-out figures stay honest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import ClassifierConfig
from tl_dist.datasets.split import folds_of
from tl_dist.features import classifiers
from tl_dist.features.classifiers import Watch, unwatched
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import figures

Loss = Callable[..., float]
"""(labels or targets, answers, weights of the examples) -> what is to be small"""
GRID = tuple(float(f"{10 ** (k / 2):.3g}") for k in range(1, -7, -1))  # l2 from 3.16 to 0.001, two per decade
FOLDS = 5
TOLERANCE = 2e-4  # on the largest entry of the gradient of the mean loss: settings are ranked, not kept
FINER = 1e-4  # the same for accuracies that are reported
WORSE_IN_A_ROW = 2  # losses after which weaker l2 are not tried


@dataclass(frozen=True, eq=False)
class Choice:
    """The setting with the least log loss of held-out examples, over all folds, weighted as in the fit."""

    l2: float
    layers: str  # the name of the chosen columns
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
    return {" ".join(layers[first:]): np.arange(starts[first], starts[-1]) for first in reversed(range(len(layers)))}


@dataclass(frozen=True, eq=False)
class Examples:
    """Features of some examples: `values` [examples, views, features] to fit, `evaluated` likewise to predict."""

    values: NDArray[np.float32]
    evaluated: NDArray[np.float32]
    labels: NDArray[Any]
    """int32 [examples], or targets float32 [examples, targets]"""
    strata: NDArray[np.int32]
    groups: Sequence[str] | None = None
    weights: NDArray[np.floating] | None = None

    def only(self, inside: NDArray[np.bool_]) -> Examples:
        """Return the examples where `inside` [examples] is true."""
        fields: dict[str, Any] = {k: np.asarray(v)[inside] for k, v in vars(self).items() if v is not None}
        return replace(self, **fields)

    def counting(self) -> Examples:
        """Return the examples with a weight above 0; refuse (65) if there are none."""
        if not self.counts.any():
            what, fix = "no training example has a weight above 0.", "give one to those that teach something."
            raise Refusal(what, fix=fix, code=ExitCode.DATA)
        return self if self.counts.all() else self.only(self.counts > 0)

    @property
    def counts(self) -> NDArray[np.float64]:
        """Return the weight of each in a fit and in comparisons of fits; reported figures do not use it."""
        return np.ones(len(self.labels)) if self.weights is None else self.weights.astype(np.float64)


def choose(
    train: Examples,
    fold: NDArray[np.int64],
    *,
    l2: Sequence[float] = GRID,
    columns: Mapping[str, NDArray[np.int64]] | None = None,
    class_weights: Sequence[float] | None = None,
    loss: Loss = figures.log_loss,
    **settings: Any,
) -> Choice:
    """Return the best of `l2` and of `columns` (default: all) for a classifier of these examples.

    They are evaluated by the mean of the probabilities over views. `fold` [examples] numbers, from 0, which are held
    out together. Weights of examples, above 0, count in the fits and in the log loss. `settings` as for
    `held_out_probabilities`.
    """
    columns = columns or {"all": np.arange(train.values.shape[-1])}
    one_class = train.labels.ndim == 1 and len(np.unique(train.labels)) == 1
    weights = classifiers.in_loss(train.labels, class_weights, train.counts)
    choices: list[Choice] = []
    for layers, subset in columns.items():
        part = replace(train, values=train.values[:, :, subset], evaluated=train.evaluated[:, :, subset])
        solvers = [classifiers.solver() for _ in range(fold.max() + 1)]
        best, worse = np.inf, 0
        for strength in sorted(set(l2), reverse=True):
            options = {"l2": strength, "class_weights": class_weights, **settings}
            probabilities = held_out_probabilities(part, fold, solvers, TOLERANCE, **options)
            reached = loss(train.labels, probabilities, weights)
            choices.append(Choice(strength, layers, subset, reached, 0))
            worse = 0 if reached < best else worse + 1
            best = min(best, reached)
            if worse == WORSE_IN_A_ROW or one_class:
                break
    best_choice = min(choices, key=lambda choice: choice.log_loss)
    edge: Literal["least", "greatest"] | None = None
    if not one_class and min(l2) < max(l2) and best_choice.l2 in (min(l2), max(l2)):
        edge = "least" if best_choice.l2 == min(l2) else "greatest"
    return replace(best_choice, num_tried=len(choices), edge=edge)


def held_out_classes(
    train: Examples, fold: NDArray[np.int64], l2: float, watch: Watch = unwatched
) -> NDArray[np.int32]:
    """Return the class of each example, [examples], as predicted from all views by the regression of the others."""
    every_view = replace(train, evaluated=train.values)
    probabilities = held_out_probabilities(
        every_view, fold, [classifiers.solver() for _ in range(fold.max() + 1)], FINER, l2=l2, watch=watch
    )
    return probabilities.argmax(axis=1).astype(np.int32)


def held_out_probabilities(
    train: Examples,
    fold: NDArray[np.int64],
    solvers: Sequence[Any],
    tolerance: float,
    name: str = "logistic",
    **settings: Any,
) -> figures.Probabilities:
    """Return [examples, classes], each example's by the classifier of the other folds alone.

    `solvers` has one for each fold; each begins at its last solution. `settings` as for `classifiers.fit`.
    """
    views, width = train.values.shape[1:]
    # About 1, so that float32 can hold their sums.
    counts = np.maximum(train.counts / train.counts.mean(), np.finfo(np.float32).tiny)
    labels = train.labels
    probabilities = np.zeros((len(fold), int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]))
    for k, solver in enumerate(solvers):
        inside = fold != k
        fitted = classifiers.fit(
            name,
            train.values[inside].reshape(-1, width),
            labels[inside].repeat(views, axis=0),
            probabilities.shape[1],
            weights=counts[inside].repeat(views),
            tolerance=tolerance,
            model=solver,
            **settings,
        )
        probabilities[~inside] = mean_over_views(fitted, train.evaluated[~inside])
    return probabilities


def mean_over_views(fitted: classifiers.Linear, evaluated: NDArray[np.float32]) -> figures.Probabilities:
    """Return the mean probabilities [examples, classes] of features [examples, views, features]."""
    num, views, width = evaluated.shape
    return fitted.probabilities(evaluated.reshape(-1, width)).reshape(num, views, -1).mean(axis=1)


@dataclass(frozen=True)
class Nested:
    """How a classifier is fitted: its settings, and what chooses those that are left open."""

    settings: ClassifierConfig
    num_classes: int
    columns: Mapping[str, NDArray[np.int64]]  # by the layers, as `classifier.layers: auto` may choose them
    class_weights: Callable[..., Sequence[float] | None] = lambda labels, weights: None
    """gives the weights of the classes in the loss from the training labels and the examples' weights"""
    seed: int = 0  # of the folds within the training examples
    watch: Watch = unwatched
    loss: Loss = figures.log_loss
    """of held-out answers, by which settings are chosen"""

    def fit(self, train: Examples) -> tuple[classifiers.Linear, Choice | None]:
        """Fit the classifier to these examples; return it, and the choice if a setting was open."""
        self.watch()
        settings, train = self.settings, train.counting()
        shared: dict[str, Any] = {"scaling": settings.scaling, "watch": self.watch}
        shared["class_weights"] = self.class_weights(train.labels, train.counts)
        candidates = GRID if settings.l2 == "auto" else np.ravel(settings.l2).astype(float).tolist()
        l2, columns, choice = candidates[0], np.arange(train.values.shape[-1]), None
        views = train.values.shape[1]
        if settings.chosen:
            within = self.columns if settings.layers == "auto" else None
            options = {"l2": candidates, "columns": within, "name": settings.name, "loss": self.loss, **shared}
            choice = choose(train, self.folds(train), **options)
            l2, columns = choice.l2, choice.columns
        fitted = classifiers.fit(
            settings.name,
            train.values[:, :, columns].reshape(-1, len(columns)),
            np.repeat(train.labels, views, axis=0),
            self.num_classes,
            l2=l2,
            weights=np.repeat(train.counts, views),
            **shared,
        )
        kernel = np.zeros((train.values.shape[-1], self.num_classes))
        kernel[columns] = fitted.kernel
        return replace(fitted, kernel=kernel), choice

    def folds(self, train: Examples) -> NDArray[np.int64]:
        """Return the fold of each training example: by strata if each has enough examples, else by class."""
        strata = train.strata
        if strata.ndim > 1:
            most = len(strata) if train.groups is None else len(set(train.groups))
            return folds_of(strata, max(2, min(FOLDS, most)), self.seed, train.groups)
        if np.unique(strata, return_counts=True)[1].min() < FOLDS:
            strata = train.labels if train.labels.ndim == 1 else np.zeros(len(strata), np.int32)
        smallest = int(np.unique(strata, return_counts=True)[1].min())
        if train.groups is not None:
            smallest = min(smallest, len(set(train.groups)))
        return folds_of(strata, max(2, min(FOLDS, smallest)), self.seed, train.groups)

    def predict(
        self, examples: Examples, held_out: NDArray[np.bool_]
    ) -> tuple[figures.Probabilities, classifiers.Linear, Choice | None]:
        """Return the probabilities of the held-out examples by a classifier of the others alone, it, and its choice."""
        fitted, choice = self.fit(examples.only(~held_out))
        return mean_over_views(fitted, examples.evaluated[held_out]), fitted, choice


def described(choice: Choice, settings: ClassifierConfig) -> str:
    """Return the choice as text: "l2 0.1, layers block4 block5 by folds of the training examples"."""
    parts = [] if isinstance(settings.l2, int | float) else [f"l2 {choice.l2:g}"]
    parts += [f"layers {choice.layers}"] if settings.layers == "auto" else []
    beyond = "" if choice.edge is None else f" ({edge_advice(choice.edge)})"
    return f"{', '.join(parts)} by folds of the training examples{beyond}"
