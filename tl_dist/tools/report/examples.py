"""The examples of a report: which of them are shown, in which order, and where they were confused."""

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
from tl_dist.tools.report.facts import Facts, in_mean
from tl_dist.tools.report.page import percent

MAX_PICTURES = 1_000
MAX_MATRIX = 30
"""classes up to which the whole confusion matrix is shown"""
MAX_CLASSES = 1_000
"""in the table of classes"""
MAX_PAIRS = 8
MAX_SUSPECTS = 50
MAX_DOUBTFUL = 200
_TOP = 3


@dataclass(frozen=True, eq=False)
class Examples:
    """What a run said of each example of a split, and what follows from it. Numbers are rows of the predictions."""

    facts: Facts
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    errors: NDArray[np.int64]
    """the most confident first"""
    suspects: Suspects
    """rows of `suspects_of`"""
    suspects_of: Predictions
    """the split, or all that was predicted out of fold"""
    images: Mapping[str, str] = field(default_factory=dict)
    """addresses of pictures by id"""
    heat: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_examples(self) -> int:
        return len(self.facts.said.labels)

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many examples are labelled as each class."""
        return np.bincount(self.facts.said.labels, minlength=len(self.facts.class_names))

    @property
    def confidence_by_id(self) -> dict[str, float]:
        return dict(zip(self.facts.said.ids.tolist(), self.confidence.tolist(), strict=True))

    def pictured(self) -> NDArray[np.int64]:
        """At most MAX_PICTURES to be shown: errors, then the least sure, then others spread evenly."""
        right = np.setdiff1d(np.arange(self.num_examples), self.errors)
        doubtful = right[np.argsort(self.confidence[right], kind="stable")]
        room = MAX_PICTURES - len(self.errors)
        if room <= 0:
            return self.errors[:MAX_PICTURES]
        near, far = doubtful[: room // 2], doubtful[room // 2 :]
        spread = far[np.linspace(0, len(far) - 1, min(room - len(near), len(far))).astype(int)]
        return np.concatenate([self.errors, near, spread])


def examples_of(facts: Facts) -> Examples:
    """Of the predictions of a run; without pictures."""
    said = facts.said
    predicted = said.probabilities.argmax(axis=1)
    confidence = said.probabilities.max(axis=1).astype(np.float64)
    wrong = np.flatnonzero(predicted != said.labels)
    own = said if facts.out_of_fold is None else in_mean(facts.out_of_fold)
    return Examples(
        facts,
        predicted,
        confidence,
        wrong[np.argsort(-confidence[wrong], kind="stable")],
        label_errors(own.labels, own.probabilities),
        own,
    )


class Cards:
    """Examples as the page's script shows them, each once: from the predictions that say it."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self._names = examples.facts.class_names
        self._place: dict[str, int] = {}
        self.all: list[dict[str, Any]] = []
        kept = [self.number_of(examples.facts.said, k) for k in examples.pictured().tolist()]
        self._of_split = [number for number in kept if number is not None]

    def number_of(self, said: Predictions, k: int) -> int | None:
        """The number of the card of an example, made if need be; None without a picture."""
        name = str(said.ids[k])
        if name not in self._place:
            if name not in self._examples.images:
                return None
            self._place[name] = len(self.all)
            self.all.append(self._card(said, k, name))
        return self._place[name]

    def _card(self, said: Predictions, k: int, name: str) -> dict[str, Any]:
        label, probabilities = int(said.labels[k]), said.probabilities[k]
        predicted = int(probabilities.argmax())
        right = predicted == label
        return {
            "id": name,
            "said": f"{self._names[predicted]} {percent(float(probabilities[predicted]))}",
            "label": "right" if right else f"label: {self._names[label]}",
            "right": right,
            "classes": [label, predicted],
            "image": self._examples.images[name],
            "heat": self._examples.heat.get(name),
            "facts": [
                ["label", self._names[label]],
                *top_classes(probabilities, self._names),
                *([["type", str(said.types[k])]] if len(said.types) else []),
            ],
        }

    def tiles(self, said: Predictions, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """Tiles of these examples, as far as they have pictures, in the words of these predictions."""
        found = ((self.number_of(said, k), k) for k in numbers)
        return [
            self._card(said, k, str(said.ids[k])) | {"number": number, "more": ""}
            for number, k in found
            if number is not None
        ]

    def for_script(self) -> dict[str, Any]:
        """What the script shows, and in which orders."""
        certainty = self._examples.confidence_by_id
        least_sure = sorted(self._of_split, key=lambda number: certainty[self.all[number]["id"]])
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
    """The most probable classes: name and probability."""
    best = np.argsort(-probabilities, kind="stable")[:_TOP].tolist()
    return [[names[k], percent(float(probabilities[k]))] for k in best]


def confusions(examples: Examples, shown: int) -> dict[str, Any]:
    """The matrix of few classes, and the most frequent pairs of many; `shown` is how many images the page holds."""
    names = examples.facts.class_names
    few = len(names) <= MAX_MATRIX
    counts = np.zeros(2 * (len(names) if few else 0,), np.int64)
    if few:
        np.add.at(counts, (examples.facts.said.labels, examples.predicted), 1)
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
    note = f"The page holds {shown:,} of {num:,} images: the errors first." if shown < num else ""
    return {
        "sentence": f"{wrong:,} of {num:,} images are taken for another class than their label.",
        "names": [shortened(name, 40) for name in names] if few else [],
        "matrix": matrix,
        "pairs": pairs(examples) if len(names) > 2 else [],
        "note": note if shown else "The page has no images.",
    }


def _shade(count: int, total: int) -> int:
    return int(np.ceil(5 * (count / total) ** 0.5)) if count else 0


def pairs(examples: Examples) -> list[dict[str, Any]]:
    """The most frequent confusions, at most MAX_PAIRS; of equal counts in the order of a matrix, which is not made."""
    names, errors = examples.facts.class_names, np.sort(examples.errors)
    places = examples.facts.said.labels[errors].astype(np.int64) * len(names) + examples.predicted[errors]
    found, numbers = np.unique(places, return_counts=True)
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
            (divmod(place, len(names)) for place in found[most].tolist()), numbers[most].tolist(), strict=True
        )
    ]


def class_tables(examples: Examples, groups: Sequence[str] | None) -> list[dict[str, Any]]:
    """Recall, precision and F1 of each class; accuracy of each type and group, the worst first."""
    names, said = examples.facts.class_names, examples.facts.said
    hits, of = examples.predicted == said.labels, clusters.numbers(said.groups)
    right, predicted = (
        np.bincount(some, minlength=len(names)) for some in (said.labels[hits], examples.predicted)
    )
    every: Sequence[int] = range(len(names))
    if len(names) > MAX_CLASSES:
        share = np.where(examples.counts, right / np.maximum(examples.counts, 1), np.inf)
        every = sorted(np.argsort(share, kind="stable")[:MAX_CLASSES].tolist())
    note = (
        f"These {len(every):,} of {len(names):,} classes are recognised least."
        if len(every) < len(names)
        else ""
    )
    intervals = clusters.of_classes(said.labels, hits, of, len(names))
    if intervals is not None:
        intervals = [intervals[k] for k in every]
    of_each = figures.of_classes(right[every], examples.counts[every], predicted[every], intervals)
    rows = [
        {
            "name": names[k],
            "num_examples": one["num_examples"],
            "share": one["recall"],
            "interval": one["interval"],
            "more": [one["precision"], one["f1"]],
        }
        for k, one in zip(every, of_each, strict=True)
    ]
    tables = [
        {
            "title": "", "caption": "By class", "first": "class", "share": "recall", "more": ["precision", "F1"],
            "rows": rows, "note": " ".join(filter(None, [note, _by_groups(of)])),
        }
    ]  # fmt: skip
    for title, kinds in (("type", said.types.tolist()), ("group", list(groups or ()))):
        if len(set(kinds)) > 1:
            tables.append(_by(title, kinds, hits, clusters.beside(kinds, said.groups.tolist())))
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
        "caption": f"By {title}, the worst first",
        "first": title,
        "share": "accuracy",
        "more": [],
        "rows": rows,
        "note": " ".join(
            filter(None, [_by_groups(of), f"{left:,} more are better than these." if left else ""])
        ),
    }
