"""Figures of a cross-validation from its out-of-fold predictions. Imports no TensorFlow."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import evaluation, figures, predictions
from tl_dist.scores.arrays import Arrays, no_text

OUT_OF_FOLD = "predictions/out_of_fold.npz"  # below the directory of a cross-validation


def name_of(config: str, by: str | None = None) -> str:
    """Return the name of a config's cross-validation; `by`: the kind of group, if each group is a fold."""
    return f"{config}-cv" + ("" if by is None else "-by-" + re.sub(r"[^\w.-]", "_", by)[:30])


@dataclass(frozen=True, eq=False)
class OutOfFold(Arrays):
    """Predictions for each example by classifiers that have not seen it, once per seed.

    `load` leaves out `chosen`, `held_out` and `trained`.
    """

    WHAT = "out-of-fold predictions"
    FIX = "move it away, and run 'tl-dist cv CONFIG' again."

    ids: Annotated[np.ndarray, "U examples"]
    labels: Annotated[np.ndarray, "iu examples"]
    types: Annotated[np.ndarray, "US examples?"]
    class_names: Annotated[np.ndarray, "U classes"]
    fold: Annotated[np.ndarray, "iu seeds examples"]
    probabilities: Annotated[np.ndarray, "f seeds examples classes"]
    chosen: Sequence[Sequence[Mapping[str, Any]]] | None = None
    """[seeds][folds]: the `l2` and `layers` of each classifier, if it chose them"""
    held_out: tuple[str, Sequence[str]] | None = None
    """if each fold is a group: the kind of group, and the groups' names"""
    groups: Annotated[np.ndarray, "US examples?"] = field(default_factory=no_text)
    """of the examples, as `Predictions.groups`"""
    trained: Sequence[Sequence[Sequence[str]]] | None = None
    """[seeds][folds]: the ids that each fold was trained on; None: all outside the fold"""
    targets: Annotated[np.ndarray, "f examples classes?"] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """as `Predictions.targets`"""

    @property
    def truth(self) -> np.ndarray:
        """Return the targets, or the labels where there are none."""
        return self.targets if len(self.targets) else self.labels

    def of_one(self, probabilities: np.ndarray) -> predictions.Predictions:
        """Return predictions of every example with these probabilities: from one seed, or the mean over seeds."""
        names, types = self.class_names, self.types
        return predictions.Predictions(self.ids, self.labels, probabilities, names, 0, types, self.groups, self.targets)

    def is_trained(self, seed: int, k: int) -> np.ndarray:
        """Return which examples fold `k` was trained on, bool [examples]."""
        return self.fold[seed] != k if self.trained is None else np.isin(self.ids, self.trained[seed][k])

    def arrays(self) -> dict[str, Any]:
        """Return the content of the file: all but `held_out` and `trained`, and of `chosen` two arrays."""
        chosen = {
            key: np.array([[choice[key] for choice in folds] for folds in self.chosen])
            for key in ("l2", "layers")
            if self.chosen is not None
        }
        arrays = {name: getattr(self, name) for name in self.shapes()}
        return {**arrays, "probabilities": self.probabilities.astype(np.float32), **chosen}


load = OutOfFold.load


def summary(results: OutOfFold, judge: figures.Judge = figures.figures) -> dict[str, Any]:
    """Return means over folds and seeds, the 95 % interval of the accuracy, and the figures of each fold and group.

    The interval is `figures.accuracy_interval` over all folds of all seeds: how the mean would vary with other data of
    the same size. If each fold is a group, which may be a single image, `figures` are over all examples together, each
    predicted once. Every example counts the same, whatever its weight in training. If an image has not one class, the
    task's `main` figure stands for the accuracy.
    """
    seeds, num_folds = len(results.fold), int(results.fold.max()) + 1
    labels, probabilities = results.truth, results.probabilities
    of_folds = [
        judge(labels[inside], probabilities[seed][inside])
        for seed, k in np.ndindex(seeds, num_folds)
        for inside in (results.fold[seed] == k,)
    ]
    main = of_folds[0].get("main", "accuracy")
    accuracies = [fold[main] for fold in of_folds]
    if None in accuracies:
        what = f"the answers of fold {accuracies.index(None) % num_folds} are no finite numbers."
        raise Refusal(what, fix="lower optimizer.learning_rate, and start under another name.", code=ExitCode.DATA)

    def of_part(seed: int, inside: np.ndarray) -> float | None:
        if main == "accuracy":
            return float((probabilities[seed, inside].argmax(axis=-1) == labels[inside]).mean())
        return judge(labels[inside], probabilities[seed, inside])[main]

    tested = [np.bincount(of_seed, minlength=num_folds) for of_seed in results.fold]
    trained = [[results.is_trained(seed, k).sum() for k in range(num_folds)] for seed in range(seeds)]
    more: dict[str, Any] = {} if results.chosen is None else {"chosen": results.chosen}
    if unseen := list(_never_seen(results)):
        more["never_seen"] = unseen
    if results.held_out is None:
        single = [key for key, value in of_folds[0].items() if value is None or isinstance(value, float)]
        of_all = {key: _mean([fold[key] for fold in of_folds]) for key in single}
    else:
        of_all = judge(labels, probabilities[0])
        kind, names = results.held_out
        of = [names[k] for k in results.fold[0]]
        more["left_out"] = {kind: evaluation.by_group(of, labels, probabilities[0], results.groups)}
    return {
        **more,
        "folds": num_folds,
        "seeds": seeds,
        "num_examples": len(labels),
        **({} if main == "accuracy" else {"main": main}),
        main: float(np.mean(accuracies)),
        "interval": figures.accuracy_interval(accuracies, float(np.divide(tested, trained).mean()), main != "rmse"),
        "fold_accuracies": np.reshape(accuracies, (seeds, num_folds)).tolist(),
        "seed_accuracies": [of_part(seed, np.full(len(labels), True)) for seed in range(seeds)],
        "figures": {key: value for key, value in of_all.items() if key != main and not key.endswith("interval")},
        "groups": {
            str(name): {
                "num_examples": int(inside.sum()),
                main: _mean([of_part(seed, inside) for seed in range(seeds)]),
            }
            for name in np.unique(results.types)
            for inside in (results.types == name,)
        },
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of a figure over folds; None if it is undefined in a fold."""
    return None if None in values else float(np.mean(values))  # type: ignore[arg-type]


def _never_seen(results: OutOfFold) -> Iterator[dict[str, Any]]:
    """Yield each fold that tests classes without a training example, with these classes and their images."""
    for seed, k in np.ndindex(len(results.fold), int(results.fold.max()) + 1):
        known, tested = results.labels[results.is_trained(seed, k)], results.labels[results.fold[seed] == k]
        if classes := evaluation.never_seen(known, tested, results.class_names.tolist()):
            fold = f"seed {seed} fold {k}" if results.held_out is None else results.held_out[1][k]
            yield {"fold": fold, "classes": classes}


def merged(
    folds: Sequence[Sequence[predictions.Predictions]],
    held_out: tuple[str, Sequence[str]] | None = None,
    trained: Sequence[Sequence[Sequence[str]]] | None = None,
) -> OutOfFold:
    """Merge the predictions of held-out folds, by seed, into out-of-fold predictions ordered by id."""
    orders = [np.argsort(np.concatenate([part.ids for part in of_seed])) for of_seed in folds]

    def joined(key: str, seed: int = 0) -> np.ndarray:
        values = np.concatenate([getattr(part, key) for part in folds[seed]])
        return values[orders[seed]] if len(values) == len(orders[seed]) else values[:0]

    sizes = [[len(part.ids) for part in of_seed] for of_seed in folds]
    fold = [np.repeat(np.arange(len(each)), each)[order] for each, order in zip(sizes, orders, strict=True)]
    return OutOfFold(
        joined("ids"),
        joined("labels"),
        joined("types"),
        folds[0][0].class_names,
        np.stack(fold),
        np.stack([joined("probabilities", seed) for seed in range(len(folds))]),
        held_out=held_out,
        groups=joined("groups"),
        trained=trained,
        targets=joined("targets"),
    )
