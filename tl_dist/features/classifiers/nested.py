"""A classifier on features whose open settings are chosen by folds within its own training examples.

Nested cross-validation: a caller who holds examples out passes only the others, so the choice is part of the training
that is evaluated, and the figures of the held-out examples stay honest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import ClassifierConfig
from tl_dist.datasets.split import folds_of
from tl_dist.features import classifiers
from tl_dist.features.classifiers import selection
from tl_dist.features.classifiers.regressions import Watch, unwatched
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import figures


@dataclass(frozen=True, eq=False)
class Examples:
    """Features of some examples: `values` [examples, views, features] to fit, `evaluated` likewise to predict."""

    values: NDArray[np.float32]
    evaluated: NDArray[np.float32]
    labels: NDArray[np.int32]
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


@dataclass(frozen=True)
class Nested:
    """How a classifier is fitted: its settings, and what chooses those that are left open.

    columns        columns of features by the layers they come from, as `classifier.layers: auto` may choose them
    class_weights  gives the weights of the classes in the loss from the training labels and the examples' weights
    seed           of the folds within the training examples
    watch          called in every round of a fit, which it ends by an exception
    """

    settings: ClassifierConfig
    num_classes: int
    columns: Mapping[str, NDArray[np.int64]]
    class_weights: Callable[..., Sequence[float] | None] = lambda labels, weights: None
    seed: int = 0
    watch: Watch = unwatched

    def fit(self, train: Examples) -> tuple[classifiers.Linear, selection.Choice | None]:
        """Fit the classifier to these examples; return it, and the choice if a setting was open."""
        self.watch()
        settings, train = self.settings, train.counting()
        class_weights = self.class_weights(train.labels, train.counts)
        candidates = selection.GRID if settings.l2 == "auto" else np.ravel(settings.l2).astype(float).tolist()
        l2, columns, choice = candidates[0], np.arange(train.values.shape[-1]), None
        views = train.values.shape[1]
        if settings.chosen:
            choice = selection.choose(
                train.values,
                train.evaluated,
                train.labels,
                self.folds(train),
                l2=candidates,
                columns=self.columns if settings.layers == "auto" else None,
                scaling=settings.scaling,
                class_weights=class_weights,
                weights=train.counts,
                watch=self.watch,
            )
            l2, columns = choice.l2, choice.columns
        fitted = classifiers.fit(
            settings.name,
            train.values[:, :, columns].reshape(-1, len(columns)),
            np.repeat(train.labels, views),
            self.num_classes,
            l2=l2,
            scaling=settings.scaling,
            class_weights=class_weights,
            weights=np.repeat(train.counts, views),
            watch=self.watch,
        )
        kernel = np.zeros((train.values.shape[-1], self.num_classes))
        kernel[columns] = fitted.kernel
        return classifiers.Linear(kernel, fitted.bias, fitted.iterations, fitted.converged), choice

    def folds(self, train: Examples) -> NDArray[np.int64]:
        """Return the fold of each training example: by strata if each has enough examples, else by class."""
        strata = train.strata
        if np.unique(strata, return_counts=True)[1].min() < selection.FOLDS:
            strata = train.labels
        smallest = int(np.unique(strata, return_counts=True)[1].min())
        if train.groups is not None:
            smallest = min(smallest, len(set(train.groups)))
        return folds_of(strata, max(2, min(selection.FOLDS, smallest)), self.seed, train.groups)

    def predict(
        self, examples: Examples, held_out: NDArray[np.bool_]
    ) -> tuple[figures.Probabilities, classifiers.Linear, selection.Choice | None]:
        """Return the probabilities of the held-out examples by a classifier of the others alone, it, and its choice."""
        fitted, choice = self.fit(examples.only(~held_out))
        evaluated = examples.evaluated[held_out]
        predicted = fitted.probabilities(evaluated.reshape(-1, evaluated.shape[-1]))
        return predicted.reshape(len(evaluated), evaluated.shape[1], -1).mean(axis=1), fitted, choice


def described(choice: selection.Choice, settings: ClassifierConfig) -> str:
    """Return the choice as text: "l2 0.1, layers block4 block5 by folds of the training examples"."""
    parts = [] if isinstance(settings.l2, int | float) else [f"l2 {choice.l2:g}"]
    parts += [f"layers {choice.layers}"] if settings.layers == "auto" else []
    beyond = "" if choice.edge is None else f" ({selection.edge_advice(choice.edge)})"
    return f"{', '.join(parts)} by folds of the training examples{beyond}"
