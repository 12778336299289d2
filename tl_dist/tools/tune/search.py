"""Search for a classifier on cached features: kind, regularisation, scaling, layers and pooling. No TensorFlow.

Successive halving over folds of the training examples: every setting is tried on the first fold, the better half on
the next, and so on. Test examples are never used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import ClassifierConfig
from tl_dist.features.classifiers import in_loss
from tl_dist.features.nested import Examples, Nested
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
    """A classifier and the features it is fitted to: the `columns` that hold `layers`."""

    classifier: ClassifierConfig
    layers: Sequence[str]
    pooling: str
    columns: NDArray[np.int64]

    @property
    def overrides(self) -> dict[str, Any]:
        """Return the sections of a config that select this setting."""
        keys = {"name", "scaling", *(["l2"] if self.classifier.name == "logistic" else [])}
        model = {"pooling": self.pooling, "layers": list(self.layers)}
        return {"classifier": self.classifier.model_dump(include=keys), "model": model}


@dataclass(frozen=True)
class Tried:
    """A setting, the number of folds it was tried on, and its mean scores over them.

    The weighted ones count each example as the fit does, by its own weight and its class weight; the others are as its
    run will report them.
    """

    setting: Setting
    folds: int
    accuracy: float
    log_loss: float
    weighted_accuracy: float
    weighted_log_loss: float

    @property
    def order(self) -> tuple[float, float]:
        """Return the sort key, least is best."""
        return -self.weighted_accuracy, self.weighted_log_loss


def settings(
    layers: Sequence[str], channels: Sequence[int], pooling: str, parts: Sequence[Sequence[str]]
) -> list[Setting]:
    """List every setting that the features of these layers allow; `channels` are the widths of the layers.

    The last layer alone, the last two and so on; if both poolings were computed, also each pooling by itself. `parts`
    are the names of those that `pooling` joins, for each layer.
    """
    starts = np.cumsum([0, *(width * len(of_layer) for width, of_layer in zip(channels, parts, strict=True))])
    candidates = []
    for first in range(len(layers)):
        shared = [part for part in parts[-1] if all(part in of_layer for of_layer in parts[first:])]
        for selected in dict.fromkeys([pooling, *shared]):
            columns = [
                np.arange(starts[k] + place * channels[k], starts[k] + (place + 1) * channels[k])
                for k in range(first, len(layers))
                for place, part in enumerate(parts[k])
                if selected in ("both", part)
            ]
            candidates += [Setting(kind, layers[first:], selected, np.concatenate(columns)) for kind in KINDS]
    return candidates


def search(
    candidates: Sequence[Setting], classifier: Nested, examples: Examples, fold: NDArray[np.int64]
) -> list[Tried]:
    """Rank the candidates, best first: by the number of folds they survived, then by weighted accuracy and log loss.

    `classifier` holds what all settings share. Examples whose `fold` is 0, 1, ... are held out in turn; those of -1
    always train.
    """
    fold, examples = fold[examples.counts > 0], examples.counting()
    of_class = classifier.class_weights(examples.labels, examples.counts)
    weights = in_loss(examples.labels, of_class, examples.counts)
    scores: list[list[Sequence[float]]] = [[] for _ in candidates]
    alive = list(range(len(candidates)))

    def tried(i: int) -> Tried:
        return Tried(candidates[i], len(scores[i]), *np.mean(scores[i], axis=0).tolist())

    def score(setting: Setting, held_out: NDArray[np.bool_]) -> Sequence[float]:
        """Return accuracy and log loss on the held-out examples, then both weighted."""
        values, evaluated = (x[:, :, setting.columns] for x in (examples.values, examples.evaluated))
        of_setting = replace(classifier, settings=setting.classifier)
        predicted, *_ = of_setting.predict(replace(examples, values=values, evaluated=evaluated), held_out)
        labels, weight = examples.labels[held_out], weights[held_out]
        right = predicted.argmax(axis=1) == labels
        return (
            float(right.mean()),
            figures.log_loss(labels, predicted),
            float(np.average(right, weights=weight)),
            figures.log_loss(labels, predicted, weight),
        )

    for k in range(int(fold.max()) + 1):
        for i in alive:
            scores[i].append(score(candidates[i], fold == k))
        alive = sorted(alive, key=lambda i: tried(i).order)[: max(4, len(alive) // 2)]
    return sorted(map(tried, range(len(candidates))), key=lambda one: (-one.folds, one.order))
