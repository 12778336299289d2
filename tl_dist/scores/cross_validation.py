"""The figures of a cross-validation from its out-of-fold predictions. Imports no TensorFlow."""

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
MOST_LINES = 10


def name_of(config: str, by: str | None = None) -> str:
    """The name of the run that the folds of a config amount to; `by`: where each group of this kind is a fold."""
    return f"{config}-cv" + ("" if by is None else "-by-" + re.sub(r"[^\w.-]", "_", by)[:30])


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What was said of each example by classifiers that had not seen it, once for each seed.

    ids, labels, types [examples]; fold [seeds, examples]; probabilities [seeds, examples, classes]; chosen
    [seeds][folds]: the `l2` and `layers` that each classifier took, where it chose them.
    """

    ids: np.ndarray
    labels: np.ndarray
    types: np.ndarray
    class_names: np.ndarray
    fold: np.ndarray
    probabilities: np.ndarray
    chosen: Sequence[Sequence[Mapping[str, Any]]] | None = None
    held_out: tuple[str, Sequence[str]] | None = None
    """where each fold is a group: what these are, and their names"""
    groups: np.ndarray = field(default_factory=lambda: np.array([], np.str_))
    """of the examples, as `Predictions.groups`"""
    trained: Sequence[Sequence[Sequence[str]]] | None = None
    """[seeds][folds]: the ids that each fold was trained on; None: all outside it"""

    def of_one(self, probabilities: np.ndarray) -> predictions.Predictions:
        """As predictions of every example, with the probabilities of a seed, or the mean over them."""
        names, types = self.class_names, self.types
        return predictions.Predictions(self.ids, self.labels, probabilities, names, 0, types, self.groups)

    def is_trained(self, seed: int, k: int) -> np.ndarray:
        """bool [examples]: by fold `k`."""
        return self.fold[seed] != k if self.trained is None else np.isin(self.ids, self.trained[seed][k])

    def save(self, path: Path) -> None:
        chosen = {
            key: np.array([[one[key] for one in folds] for folds in self.chosen])
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
    """What `save` has written, without what was chosen. Refuses (65) a file that is not that."""

    def made(arrays: dict[str, Any]) -> OutOfFold:
        found = OutOfFold(
            arrays["ids"],
            arrays["labels"],
            arrays["types"],
            arrays["class_names"],
            arrays["fold"],
            arrays["probabilities"],
            **{key: arrays[key] for key in ("groups",) if key in arrays},
        )
        for probabilities in found.probabilities:  # which says what has another shape or type
            found.of_one(probabilities)
        return found

    fix = "move it away, and run 'tl-dist cv CONFIG' again."
    return load_npz(path, made, what="out-of-fold predictions", fix=fix)


def summary(found: OutOfFold) -> dict[str, Any]:
    """Means over folds and seeds, the 95 % interval of the accuracy, and every fold and group by itself.

    The interval is that of `figures.accuracy_interval` over all folds of all seeds: how the mean would vary with
    other data of the same size. Where each fold is a group, down to one of a single image, `figures` are those of all
    examples together, each of which is predicted once. Each example counts the same, whatever its weight in training.
    """
    seeds, num_folds = len(found.fold), int(found.fold.max()) + 1
    each = [
        [
            figures.figures(found.labels[inside], found.probabilities[seed][inside])
            for inside in (found.fold[seed] == k for k in range(num_folds))
        ]
        for seed in range(seeds)
    ]
    accuracies = [[fold["accuracy"] for fold in folds] for folds in each]
    flat = [fold for folds in each for fold in folds]
    right = found.probabilities.argmax(axis=-1) == found.labels
    more: dict[str, Any] = {} if found.chosen is None else {"chosen": found.chosen}
    tested = [np.bincount(of_seed, minlength=num_folds) for of_seed in found.fold]
    trained = [[found.is_trained(seed, k).sum() for k in range(num_folds)] for seed in range(seeds)]
    ratio = figures.test_to_train(tested, trained)
    if unseen := list(_never_seen(found)):
        more["never_seen"] = unseen
    of_all = {key: mean_of(flat, key) for key in flat[0]}
    if found.held_out is not None:
        of_all = figures.figures(found.labels, found.probabilities[0])
        kind, names = found.held_out
        of = [names[k] for k in found.fold[0]]
        more["left_out"] = {kind: groups.by_group(of, found.labels, found.probabilities[0], found.groups)}
    return {
        **more,
        "folds": num_folds,
        "seeds": seeds,
        "num_examples": len(found.labels),
        "accuracy": float(np.mean(accuracies)),
        "interval": figures.accuracy_interval(np.ravel(accuracies).tolist(), ratio),
        "fold_accuracies": accuracies,
        "seed_accuracies": right.mean(axis=1).tolist(),
        "figures": {key: value for key, value in of_all.items() if key not in ("accuracy", "interval")},
        "groups": {
            str(name): {
                "num_examples": int((found.types == name).sum()),
                "accuracy": float(right[:, found.types == name].mean()),
            }
            for name in np.unique(found.types)
        },
    }


def _never_seen(found: OutOfFold) -> Iterator[dict[str, Any]]:
    """Of each fold that tests classes without a training example: which, and how many images of each."""
    for seed, k in np.ndindex(len(found.fold), int(found.fold.max()) + 1):
        known, tested = found.labels[found.is_trained(seed, k)], found.labels[found.fold[seed] == k]
        if classes := evaluation.never_seen(known, tested, found.class_names.tolist()):
            fold = f"seed {seed} fold {k}" if found.held_out is None else found.held_out[1][k]
            yield {"fold": fold, "classes": classes}


def never_seen_lines(result: Mapping[str, Any]) -> list[str]:
    """What `summary` says of such classes, a line for each fold; of many folds the first."""
    lines = [
        f"{one['fold']}: {evaluation.never_seen_line(one['classes'], 'in training of this fold')}"
        for one in result.get("never_seen", ())
    ]
    return [*lines[:MOST_LINES], *([f"and {len(lines) - MOST_LINES} more"] if lines[MOST_LINES:] else [])]


def mean_of(folds: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The mean of a figure over folds; None where one fold does not define it."""
    values = [fold[key] for fold in folds]
    return None if None in values else float(np.mean(values))


def merged(
    folds: Sequence[Sequence[predictions.Predictions]],
    held_out: tuple[str, Sequence[str]] | None = None,
    trained: Sequence[Sequence[Sequence[str]]] | None = None,
) -> OutOfFold:
    """Out-of-fold predictions from those of each held-out fold, by seed; ordered by id."""
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
    fold, said = np.stack(numbers), np.stack(probabilities)
    return OutOfFold(
        ids, labels, types, classes, fold, said, held_out=held_out, groups=names, trained=trained
    )
