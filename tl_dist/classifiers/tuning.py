"""Search for a classifier on cached features: kind, regularisation, scaling, layers and pooling. No TensorFlow.

Successive halving over folds of the training examples: every setting is tried on the first fold, the better half of
them on the next, and so on. No test example is ever looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist import classifiers, figures

L2 = (0.003, 0.01, 0.03, 0.1, 0.3)
SCALINGS = ("standardize", "none")


@dataclass(frozen=True)
class Setting:
    """One classifier; `columns` are the features that it sees."""

    overrides: Mapping[str, Any]
    columns: NDArray[np.int64]
    name: str
    l2: float
    scaling: str


@dataclass(frozen=True)
class Tried:
    """A setting, the folds it was tried on, and the means over them."""

    setting: Setting
    folds: int
    accuracy: float
    log_loss: float


def settings(layers: Sequence[str], channels: Sequence[int], pooling: str) -> list[Setting]:
    """Everything that can be had from features of these layers, `channels` wide each, without computing new ones.

    The last layer alone, the last two and so on; of both poolings also each by itself.
    """
    parts = ("average", "maximum") if pooling == "both" else (pooling,)
    starts = np.cumsum([0, *(width * len(parts) for width in channels)])
    kinds = [*(("logistic", l2) for l2 in L2), ("nearest_mean", 0.0)]
    found = []
    for first, chosen in product(range(len(layers)), [pooling] + ([*parts] if len(parts) > 1 else [])):
        columns = [
            np.arange(starts[k] + part * channels[k], starts[k] + (part + 1) * channels[k])
            for k in range(first, len(layers))
            for part in range(len(parts))
            if chosen in ("both", parts[part])
        ]
        for (name, l2), scaling in product(kinds, SCALINGS):
            overrides: dict[str, Any] = {"classifier": {"name": name, "scaling": scaling}}
            if name == "logistic":
                overrides["classifier"]["l2"] = l2
            overrides["model"] = {"pooling": chosen, "layers": list(layers[first:])}
            found.append(Setting(overrides, np.concatenate(columns), name, l2, scaling))
    return found


def search(
    candidates: Sequence[Setting],
    values: NDArray[np.float32],
    labels: NDArray[np.int32],
    fold: NDArray[np.int64],
    num_classes: int,
    *,
    stop_requested: Callable[[], bool] = lambda: False,
) -> list[Tried]:
    """Settings from best to worst: those that were tried on more folds first, then by accuracy, then by log loss.

    values [examples, views, features]; fold [examples], whose numbers from 0 on are held out in turn (-1: never).
    """
    scores: list[list[tuple[float, float]]] = [[] for _ in candidates]
    alive = list(range(len(candidates)))
    for k in range(int(fold.max()) + 1):
        for i in alive:
            if stop_requested():
                return []
            scores[i].append(_score(candidates[i], values, labels, fold, k, num_classes))
        alive.sort(key=lambda i: _rank(scores[i]))
        alive = alive[: max(4, len(alive) // 2)]
    order = sorted(range(len(candidates)), key=lambda i: (-len(scores[i]), *_rank(scores[i])))
    return [
        Tried(candidates[i], len(scores[i]), *(float(x) for x in np.mean(scores[i], axis=0))) for i in order
    ]


def _rank(scores: Sequence[tuple[float, float]]) -> tuple[float, float]:
    accuracy, log_loss = np.mean(scores, axis=0)
    return -float(accuracy), float(log_loss)


def _score(
    setting: Setting, values: Any, labels: Any, fold: Any, held_out: int, num_classes: int
) -> tuple[float, float]:
    trained, tested = values[fold != held_out], values[fold == held_out]
    views = values.shape[1]
    fitted = classifiers.fit(
        setting.name,
        trained[:, :, setting.columns].reshape(-1, len(setting.columns)),
        np.repeat(labels[fold != held_out], views),
        num_classes,
        l2=setting.l2,
        scaling=setting.scaling,
    )
    said = fitted.probabilities(tested[:, 0][:, setting.columns])
    truth = labels[fold == held_out]
    return float((said.argmax(axis=1) == truth).mean()), figures.log_loss(truth, said)
