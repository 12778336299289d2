"""Search for a classifier on cached features: kind, regularisation, scaling, layers and pooling. No TensorFlow.

Successive halving over folds of the training examples: every setting is tried on the first fold, the better half of
them on the next, and so on. No test example is ever looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import ClassifierConfig
from tl_dist.features.classifiers import in_loss
from tl_dist.features.classifiers.nested import Examples, Nested
from tl_dist.scores import figures

L2 = (0.003, 0.01, 0.03, 0.1, 0.3)
KINDS = [
    kind.model_copy(update={"scaling": scaling})
    for kind in (
        *(ClassifierConfig(name="logistic", l2=l2) for l2 in L2),
        ClassifierConfig(name="nearest_mean"),
    )
    for scaling in ("standardize", "none")
]


@dataclass(frozen=True)
class Setting:
    """One classifier, and the features that it sees: those of `layers`, in `columns`."""

    classifier: ClassifierConfig
    layers: Sequence[str]
    pooling: str
    columns: NDArray[np.int64]

    @property
    def overrides(self) -> dict[str, Any]:
        """What a config says of it."""
        keys = {"name", "scaling", *(["l2"] if self.classifier.name == "logistic" else [])}
        model = {"pooling": self.pooling, "layers": list(self.layers)}
        return {"classifier": self.classifier.model_dump(include=keys), "model": model}


@dataclass(frozen=True)
class Tried:
    """A setting, the folds it was tried on, and the means over them: as its run will report them, and ranked by.

    `ranked_by` is the accuracy and the log loss of examples that count as in the fit, by their weights and those of
    their classes.
    """

    setting: Setting
    folds: int
    accuracy: float
    log_loss: float
    ranked_by: tuple[float, float]


def settings(layers: Sequence[str], channels: Sequence[int], pooling: str) -> list[Setting]:
    """Everything that can be had from features of these layers, `channels` wide each, without computing new ones.

    The last layer alone, the last two and so on; of both poolings also each by itself.
    """
    parts = ("average", "maximum") if pooling == "both" else (pooling,)
    starts = np.cumsum([0, *(width * len(parts) for width in channels)])
    found = []
    for first, chosen in product(range(len(layers)), [pooling] + ([*parts] if len(parts) > 1 else [])):
        columns = [
            np.arange(starts[k] + part * channels[k], starts[k] + (part + 1) * channels[k])
            for k in range(first, len(layers))
            for part in range(len(parts))
            if chosen in ("both", parts[part])
        ]
        found += [Setting(kind, layers[first:], chosen, np.concatenate(columns)) for kind in KINDS]
    return found


def search(
    candidates: Sequence[Setting],
    classifier: Nested,
    examples: Examples,
    fold: NDArray[np.int64],
) -> list[Tried]:
    """Settings from best to worst: those that were tried on more folds first, then by accuracy, then by log loss.

    In these an example counts as in the fit, by its weight and that of its class.
    `classifier` has what all settings share; fold [examples]: numbers from 0 on are held out in turn, -1 is never.
    """
    fold, examples = fold[examples.counts > 0], examples.counting()
    of_class = classifier.class_weights(examples.labels, examples.counts)
    weights = in_loss(examples.labels, of_class, examples.counts)
    scores: list[list[_Score]] = [[] for _ in candidates]
    alive = list(range(len(candidates)))
    for k in range(int(fold.max()) + 1):
        for i in alive:
            scores[i].append(_score(candidates[i], classifier, examples, fold == k, weights))
        alive.sort(key=lambda i: _rank(scores[i]))
        alive = alive[: max(4, len(alive) // 2)]
    order = sorted(range(len(candidates)), key=lambda i: (-len(scores[i]), *_rank(scores[i])))
    found = []
    for i in order:
        accuracy, log_loss, *ranked_by = (float(x) for x in np.mean(scores[i], axis=0))
        found.append(Tried(candidates[i], len(scores[i]), accuracy, log_loss, (ranked_by[0], ranked_by[1])))
    return found


_Score = tuple[float, float, float, float]
"""accuracy, log loss; the same by the weights"""


def _rank(scores: Sequence[_Score]) -> tuple[float, float]:
    _, _, accuracy, log_loss = np.mean(scores, axis=0)
    return -float(accuracy), float(log_loss)


def _score(
    setting: Setting,
    classifier: Nested,
    examples: Examples,
    held_out: NDArray[np.bool_],
    weights: NDArray[np.float64],
) -> _Score:
    seen = replace(
        examples,
        values=examples.values[:, :, setting.columns],
        evaluated=examples.evaluated[:, :, setting.columns],
    )
    predicted, *_ = replace(classifier, settings=setting.classifier).predict(seen, held_out)
    truth = examples.labels[held_out]
    of_held_out = weights[held_out]
    right = predicted.argmax(axis=1) == truth
    return (
        float(right.mean()),
        figures.log_loss(truth, predicted),
        float(np.average(right, weights=of_held_out)),
        figures.log_loss(truth, predicted, of_held_out),
    )
