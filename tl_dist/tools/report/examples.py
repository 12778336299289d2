"""Choose and order the examples that a report shows, and count which classes are confused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.refusal import shortened
from tl_dist.scores import clusters, figures
from tl_dist.scores.label_errors import Suspects, label_errors
from tl_dist.scores.predictions import Predictions
from tl_dist.tools.report.facts import Facts, mean_over_seeds
from tl_dist.tools.report.page import percent

MAX_PICTURES = 1_000
MAX_MATRIX = 30
"""most classes of which the whole confusion matrix is shown"""
MAX_CLASSES = 1_000
"""rows in the table of classes"""
MAX_PAIRS = 8
MAX_SUSPECTS = 50
MAX_DOUBTFUL = 200
_TOP = 3


@dataclass(frozen=True, eq=False)
class Examples:
    """A run's predictions for each example of a split, and what follows. Examples are rows of the predictions."""

    facts: Facts
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    errors: NDArray[np.int64]
    """the most confident first"""
    suspects: Suspects
    """rows of `suspects_of`"""
    suspects_of: Predictions
    """predictions by which labels are checked: of the split, or of all examples out of fold"""
    images: Mapping[str, str] = field(default_factory=dict)
    """`data:` addresses by id"""
    heat: Mapping[str, str] = field(default_factory=dict)
    """`data:` addresses of heat maps by id"""

    @property
    def num_examples(self) -> int:
        """Return the number of predicted examples."""
        return len(self.facts.predictions.labels)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Count the examples labelled as each class."""
        return np.bincount(self.facts.predictions.labels, minlength=len(self.facts.class_names))

    def pictured(self) -> NDArray[np.int64]:
        """Choose at most MAX_PICTURES examples to show: errors, then the least sure, then others spread evenly."""
        right = np.setdiff1d(np.arange(self.num_examples), self.errors)
        doubtful = right[np.argsort(self.confidence[right], kind="stable")]
        room = MAX_PICTURES - len(self.errors)
        if room <= 0:
            return self.errors[:MAX_PICTURES]
        near, far = doubtful[: room // 2], doubtful[room // 2 :]
        spread = far[np.linspace(0, len(far) - 1, min(room - len(near), len(far))).astype(int)]
        return np.concatenate([self.errors, near, spread])


def examples_of(facts: Facts) -> Examples:
    """Derive the examples from the predictions of a run, without pictures."""
    predictions = facts.predictions
    predicted = predictions.probabilities.argmax(axis=1)
    confidence = predictions.probabilities.max(axis=1).astype(np.float64)
    wrong = np.flatnonzero(predicted != predictions.labels)
    checked = predictions if facts.out_of_fold is None else mean_over_seeds(facts.out_of_fold)
    return Examples(
        facts,
        predicted,
        confidence,
        wrong[np.argsort(-confidence[wrong], kind="stable")],
        label_errors(checked.labels, checked.probabilities),
        checked,
    )


class Cards:
    """The examples that the page's script shows, each once, with the predictions that it was first added by."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self._names = examples.facts.class_names
        self._place: dict[str, int] = {}
        self.all: list[dict[str, Any]] = []
        numbers = [self.number_of(examples.facts.predictions, k) for k in examples.pictured().tolist()]
        self._of_split = [number for number in numbers if number is not None]

    def number_of(self, predictions: Predictions, k: int) -> int | None:
        """Return the number of an example's card, which is added if missing; None without a picture."""
        name = str(predictions.ids[k])
        if name not in self._place:
            if name not in self._examples.images:
                return None
            self._place[name] = len(self.all)
            self.all.append(self._card(predictions, k, name))
        return self._place[name]

    def _card(self, predictions: Predictions, k: int, name: str) -> dict[str, Any]:
        label, probabilities = int(predictions.labels[k]), predictions.probabilities[k]
        predicted = int(probabilities.argmax())
        right = predicted == label
        return {
            "id": name,
            "prediction": f"{self._names[predicted]} {percent(float(probabilities[predicted]))}",
            "label": "correct" if right else f"label: {self._names[label]}",
            "right": right,
            "classes": [label, predicted],
            "image": self._examples.images[name],
            "heat": self._examples.heat.get(name),
            "facts": [
                ["label", self._names[label]],
                *top_classes(probabilities, self._names),
                *([["type", str(predictions.types[k])]] if len(predictions.types) else []),
            ],
        }

    def tiles(self, predictions: Predictions, rows: Iterable[int]) -> list[dict[str, Any]]:
        """Make a tile of each of these rows of `predictions` that has a picture."""
        return [
            self._card(predictions, k, str(predictions.ids[k])) | {"number": number, "more": ""}
            for k in rows
            if (number := self.number_of(predictions, k)) is not None
        ]

    def for_script(self) -> dict[str, Any]:
        """Return the data of the script: class names, cards, and the orders in which they can be shown."""
        ids = self._examples.facts.predictions.ids.tolist()
        confidence = dict(zip(ids, self._examples.confidence.tolist(), strict=True))
        least_sure = sorted(self._of_split, key=lambda number: confidence[self.all[number]["id"]])
        return {
            "class_names": self._names,
            "examples": self.all,
            "orders": {
                "errors": [number for number in self._of_split if not self.all[number]["right"]],
                "doubtful": least_sure[:MAX_DOUBTFUL],
                "all": self._of_split,
            },
        }


def top_classes(probabilities: NDArray[np.floating], names: Sequence[str]) -> list[list[str]]:
    """Return name and probability of the most probable classes."""
    best = np.argsort(-probabilities, kind="stable")[:_TOP].tolist()
    return [[names[k], percent(float(probabilities[k]))] for k in best]


def confusions(examples: Examples, shown: int) -> dict[str, Any]:
    """Return the confusion matrix if there are few classes, and the most frequent pairs if there are more than two.

    `shown` is the number of images on the page.
    """
    names = examples.facts.class_names
    few = len(names) <= MAX_MATRIX
    counts = np.zeros(2 * (len(names) if few else 0,), np.int64)
    if few:
        np.add.at(counts, (examples.facts.predictions.labels, examples.predicted), 1)
    matrix = [
        {
            "name": shortened(name, 40),
            "number": k,
            "cells": [
                {"count": int(n), "right": j == k, "shade": _shade(int(n), int(counts[k].sum()))}
                for j, n in enumerate(counts[k])
            ],
        }
        for k, name in enumerate(names if few else [])
    ]
    num, wrong = examples.num_examples, len(examples.errors)
    note = f"This page holds {shown:,} of {num:,} images, errors first." if shown < num else ""
    return {
        "sentence": f"{wrong:,} of {num:,} images are classified as another class than their label.",
        "names": [shortened(name, 40) for name in names] if few else [],
        "matrix": matrix,
        "pairs": pairs(examples) if len(names) > 2 else [],
        "note": note if shown else "This page has no images.",
    }


def _shade(count: int, total: int) -> int:
    return int(np.ceil(5 * (count / total) ** 0.5)) if count else 0


def pairs(examples: Examples) -> list[dict[str, Any]]:
    """List the most frequent confusions, at most MAX_PAIRS; equal counts are in row order of the confusion matrix."""
    names, errors = examples.facts.class_names, np.sort(examples.errors)
    labels = examples.facts.predictions.labels[errors].astype(np.int64)
    cells, numbers = np.unique(labels * len(names) + examples.predicted[errors], return_counts=True)
    most = np.argsort(-numbers, kind="stable")[:MAX_PAIRS]
    return [
        {
            "label": names[k],
            "predicted": names[j],
            "label_number": k,
            "predicted_number": j,
            "count": count,
            "of": int(examples.counts[k]),
        }
        for (k, j), count in zip(
            (divmod(cell, len(names)) for cell in cells[most].tolist()), numbers[most].tolist(), strict=True
        )
    ]


def class_tables(examples: Examples, groups: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return the tables of recall, precision and F1 by class, and of accuracy by type and group, worst first."""
    names, predictions = examples.facts.class_names, examples.facts.predictions
    hits, of = examples.predicted == predictions.labels, clusters.numbers(predictions.groups)
    right = np.bincount(predictions.labels[hits], minlength=len(names))
    predicted = np.bincount(examples.predicted, minlength=len(names))
    every: Sequence[int] = range(len(names))
    if len(names) > MAX_CLASSES:
        share = np.where(examples.counts, right / np.maximum(examples.counts, 1), np.inf)
        every = sorted(np.argsort(share, kind="stable")[:MAX_CLASSES].tolist())
    few = len(every) < len(names)
    note = f"The {len(every):,} of {len(names):,} classes with the lowest recall." if few else ""
    intervals = clusters.of_classes(predictions.labels, hits, of, len(names))
    if intervals is not None:
        intervals = [intervals[k] for k in every]
    of_each = figures.of_classes(right[every], examples.counts[every], predicted[every], intervals)
    rows = [
        {
            "name": names[k],
            "num_examples": scores["num_examples"],
            "share": scores["recall"],
            "interval": scores["interval"],
            "more": [scores["precision"], scores["f1"]],
        }
        for k, scores in zip(every, of_each, strict=True)
    ]
    tables = [
        {
            "title": "", "caption": "By class", "first": "class", "share": "recall", "more": ["precision", "F1"],
            "rows": rows, "note": " ".join(filter(None, [note, _by_groups(of)])),
        }
    ]  # fmt: skip
    for title, kinds in (("type", predictions.types.tolist()), ("group", list(groups or ()))):
        if len(set(kinds)) > 1:
            tables.append(_by(title, kinds, hits, clusters.beside(kinds, predictions.groups.tolist())))
    return tables


def _by_groups(of: NDArray[np.int64] | None) -> str:
    return "" if of is None else f"Intervals: {clusters.by_design_effect(of)['interval_by']}."


_MAX_GROUPS = 30


def _by(
    title: str, of_each: Sequence[str], hits: NDArray[np.bool_], of: NDArray[np.int64] | None
) -> dict[str, Any]:
    names, numbers = np.unique(np.array(of_each), return_inverse=True)
    totals = np.bincount(numbers)
    right = np.bincount(numbers, weights=hits).astype(int)
    worst = np.argsort(right / totals, kind="stable")
    rows = [
        {
            "name": str(names[k]),
            "num_examples": int(totals[k]),
            "share": float(right[k] / totals[k]),
            "interval": clusters.interval(hits[numbers == k], None if of is None else of[numbers == k]),
            "more": [],
        }
        for k in worst[:_MAX_GROUPS].tolist()
    ]
    left = len(names) - len(rows)
    return {
        "title": f"By {title}",
        "caption": f"By {title}, worst first",
        "first": title,
        "share": "accuracy",
        "more": [],
        "rows": rows,
        "note": " ".join(
            filter(None, [_by_groups(of), f"{left:,} others are better than these." if left else ""])
        ),
    }
