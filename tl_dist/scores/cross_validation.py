"""Figures of a cross-validation from its out-of-fold predictions. Imports no TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tl_dist.files.npz import load_npz
from tl_dist.scores import evaluation, figures, groups, predictions

OUT_OF_FOLD = "predictions/out_of_fold.npz"
"""below the directory of a cross-validation"""


def name_of(config: str, by: str | None = None) -> str:
    """Return the name of a config's cross-validation; `by`: the kind of group, if each group is a fold."""
    return f"{config}-cv" + ("" if by is None else "-by-" + re.sub(r"[^\w.-]", "_", by)[:30])


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions for each example by classifiers that have not seen it, once per seed.

    ids, labels, types [examples]; fold [seeds, examples]; probabilities [seeds, examples, classes]; chosen
    [seeds][folds]: the `l2` and `layers` of each classifier, if it chose them.
    """

    ids: np.ndarray
    labels: np.ndarray
    types: np.ndarray
    class_names: np.ndarray
    fold: np.ndarray
    probabilities: np.ndarray
    chosen: Sequence[Sequence[Mapping[str, Any]]] | None = None
    held_out: tuple[str, Sequence[str]] | None = None
    """if each fold is a group: the kind of group, and the groups' names"""
    groups: np.ndarray = field(default_factory=lambda: np.array([], np.str_))
    """of the examples, as `Predictions.groups`"""
    trained: Sequence[Sequence[Sequence[str]]] | None = None
    """[seeds][folds]: the ids that each fold was trained on; None: all outside the fold"""

    def of_one(self, probabilities: np.ndarray) -> predictions.Predictions:
        """Return predictions of every example with these probabilities: from one seed, or the mean over seeds."""
        names, types = self.class_names, self.types
        return predictions.Predictions(self.ids, self.labels, probabilities, names, 0, types, self.groups)

    def is_trained(self, seed: int, k: int) -> np.ndarray:
        """Return which examples fold `k` was trained on, bool [examples]."""
        return self.fold[seed] != k if self.trained is None else np.isin(self.ids, self.trained[seed][k])

    def save(self, path: Path) -> None:
        """Write the arrays to `path`."""
        chosen = {
            key: np.array([[choice[key] for choice in folds] for folds in self.chosen])
            for key in ("l2", "layers")
            if self.chosen is not None
        }
        predictions.save(
            path,
            ids=self.ids,
            labels=self.labels,
            types=self.types,
            groups=self.groups,
            class_names=self.class_names,
            fold=self.fold,
            probabilities=self.probabilities.astype(np.float32),
            **chosen,
        )


def load(path: Path) -> OutOfFold:
    """Read what `save` wrote, without `chosen`. Refuses (65) any other file."""

    def from_arrays(arrays: dict[str, Any]) -> OutOfFold:
        result = OutOfFold(
            arrays["ids"],
            arrays["labels"],
            arrays["types"],
            arrays["class_names"],
            arrays["fold"],
            arrays["probabilities"],
            **{key: arrays[key] for key in ("groups",) if key in arrays},
        )
        for probabilities in result.probabilities:  # raises an error for a wrong shape or type
            result.of_one(probabilities)
        return result

    fix = "move it away, and run 'tl-dist cv CONFIG' again."
    return load_npz(path, from_arrays, what="out-of-fold predictions", fix=fix)


def summary(results: OutOfFold) -> dict[str, Any]:
    """Return means over folds and seeds, the 95 % interval of the accuracy, and the figures of each fold and group.

    The interval is `figures.accuracy_interval` over all folds of all seeds: how the mean would vary with other data of
    the same size. If each fold is a group, which may be a single image, `figures` are over all examples together, each
    predicted once. Every example counts the same, whatever its weight in training.
    """
    seeds, num_folds = len(results.fold), int(results.fold.max()) + 1
    each = [
        [
            figures.figures(results.labels[inside], results.probabilities[seed][inside])
            for inside in (results.fold[seed] == k for k in range(num_folds))
        ]
        for seed in range(seeds)
    ]
    accuracies = [[fold["accuracy"] for fold in folds] for folds in each]
    flat = [fold for folds in each for fold in folds]
    right = results.probabilities.argmax(axis=-1) == results.labels
    more: dict[str, Any] = {} if results.chosen is None else {"chosen": results.chosen}
    tested = [np.bincount(of_seed, minlength=num_folds) for of_seed in results.fold]
    trained = [[results.is_trained(seed, k).sum() for k in range(num_folds)] for seed in range(seeds)]
    ratio = figures.test_to_train(tested, trained)
    if unseen := list(_never_seen(results)):
        more["never_seen"] = unseen
    of_all = {key: mean_of(flat, key) for key in flat[0]}
    if results.held_out is not None:
        of_all = figures.figures(results.labels, results.probabilities[0])
        kind, names = results.held_out
        of = [names[k] for k in results.fold[0]]
        more["left_out"] = {
            kind: groups.by_group(of, results.labels, results.probabilities[0], results.groups)
        }
    return {
        **more,
        "folds": num_folds,
        "seeds": seeds,
        "num_examples": len(results.labels),
        "accuracy": float(np.mean(accuracies)),
        "interval": figures.accuracy_interval(np.ravel(accuracies).tolist(), ratio),
        "fold_accuracies": accuracies,
        "seed_accuracies": right.mean(axis=1).tolist(),
        "figures": {key: value for key, value in of_all.items() if key not in ("accuracy", "interval")},
        "groups": {
            str(name): {
                "num_examples": int((results.types == name).sum()),
                "accuracy": float(right[:, results.types == name].mean()),
            }
            for name in np.unique(results.types)
        },
    }


def _never_seen(results: OutOfFold) -> Iterator[dict[str, Any]]:
    """Yield each fold that tests classes without a training example, with these classes and their images."""
    for seed, k in np.ndindex(len(results.fold), int(results.fold.max()) + 1):
        known, tested = results.labels[results.is_trained(seed, k)], results.labels[results.fold[seed] == k]
        if classes := evaluation.never_seen(known, tested, results.class_names.tolist()):
            fold = f"seed {seed} fold {k}" if results.held_out is None else results.held_out[1][k]
            yield {"fold": fold, "classes": classes}


def mean_of(folds: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean of a figure over folds; None if it is undefined in a fold."""
    values = [fold[key] for fold in folds]
    return None if None in values else float(np.mean(values))


def merged(
    folds: Sequence[Sequence[predictions.Predictions]],
    held_out: tuple[str, Sequence[str]] | None = None,
    trained: Sequence[Sequence[Sequence[str]]] | None = None,
) -> OutOfFold:
    """Merge the predictions of held-out folds, by seed, into out-of-fold predictions ordered by id."""
    probabilities, numbers = [], []
    for of_seed in folds:
        ids = np.concatenate([part.ids for part in of_seed])
        order = np.argsort(ids)
        probabilities.append(np.concatenate([part.probabilities for part in of_seed])[order])
        number = np.concatenate([np.full(len(part.ids), k) for k, part in enumerate(of_seed)])
        numbers.append(number[order])
        labels = np.concatenate([part.labels for part in of_seed])[order]
        types, names = (
            joined[order] if len(joined) == len(order) else joined[:0]
            for joined in (
                np.concatenate([getattr(part, key) for part in of_seed]) for key in ("types", "groups")
            )
        )
        ids = ids[order]
    classes = folds[0][0].class_names
    fold, stacked = np.stack(numbers), np.stack(probabilities)
    return OutOfFold(
        ids, labels, types, classes, fold, stacked, held_out=held_out, groups=names, trained=trained
    )
