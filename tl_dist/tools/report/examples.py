"""Choose and order the examples that a report shows, and count which classes are confused."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores import clusters, figures
from tl_dist.scores.label_errors import Suspects, label_errors
from tl_dist.scores.predictions import Predictions
from tl_dist.scores.text import percent
from tl_dist.tools.report.facts import Facts
from tl_dist.tools.report.page import card

MAX_PICTURES = 1_000
MAX_MATRIX = 30  # most classes of which the whole confusion matrix is shown
MAX_CLASSES = 1_000  # rows in the table of classes
MAX_PAIRS = 8
MAX_SUSPECTS = 50
MAX_DOUBTFUL = 200
_MAX_GROUPS = 30


@dataclass(frozen=True, eq=False)
class Examples:
    """A run's predictions for each example of a split, and what follows. Examples are rows of the predictions."""

    facts: Facts
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    errors: NDArray[np.int64]  # the most confident first
    suspects: Suspects  # rows of `suspects_of`
    suspects_of: Predictions
    """predictions by which labels are checked: of the split, or of all examples out of fold"""
    images: Mapping[str, str] = field(default_factory=dict)  # `data:` addresses by id
    heat: Mapping[str, str] = field(default_factory=dict)  # `data:` addresses of heat maps by id

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
    predictions = checked = facts.predictions
    predicted = predictions.probabilities.argmax(axis=1)
    confidence = predictions.probabilities.max(axis=1).astype(np.float64)
    wrong = np.flatnonzero(predicted != predictions.labels)
    errors = wrong[np.argsort(-confidence[wrong], kind="stable")]
    if facts.out_of_fold is not None:
        # The mean over seeds is more accurate than any one model, so it only checks labels.
        checked = facts.out_of_fold.of_one(facts.out_of_fold.probabilities.mean(axis=0))
    suspects = label_errors(checked.labels, checked.probabilities)
    return Examples(facts, predicted, confidence, errors, suspects, checked)


class Cards:
    """The examples that the page's script shows, each once, with the predictions that it was first added by."""

    def __init__(self, examples: Examples) -> None:
        self._examples, self._names = examples, examples.facts.class_names
        self._numbers: dict[str, int] = {}
        self.all: list[dict[str, Any]] = []
        ids, pictured = examples.facts.predictions.ids, examples.pictured()
        self._rows = [k for k in pictured.tolist() if str(ids[k]) in examples.images]
        self._of_split = [tile["number"] for tile in self.tiles(examples.facts.predictions, self._rows)]

    def tiles(self, predictions: Predictions, rows: Iterable[int]) -> list[dict[str, Any]]:
        """Make a tile of each of these rows of `predictions` that has a picture, and a card if it has none yet."""
        tiles = []
        for k in rows:
            name = str(predictions.ids[k])
            if name in self._examples.images:
                card = self._card(predictions, k, name)
                if name not in self._numbers:
                    self._numbers[name] = len(self.all)
                    self.all.append(card)
                tiles.append(card | {"number": self._numbers[name], "more": ""})
        return tiles

    def _card(self, predictions: Predictions, k: int, name: str) -> dict[str, Any]:
        names, label = self._names, int(predictions.labels[k])
        probabilities = predictions.probabilities[k]
        best = np.argsort(-probabilities, kind="stable")[:3].tolist()
        predicted = int(probabilities.argmax())
        facts = [["label", names[label]], *([names[j], percent(float(probabilities[j]))] for j in best)]
        facts += [["type", str(predictions.types[k])]] if len(predictions.types) else []
        return card(
            name,
            self._examples.images[name],
            facts,
            prediction=f"{names[predicted]} {percent(float(probabilities[predicted]))}",
            label="correct" if predicted == label else f"label: {names[label]}",
            right=predicted == label,
            classes=[label, predicted],
            heat=self._examples.heat.get(name),
        )

    def for_script(self) -> dict[str, Any]:
        """Return the data of the script: class names, cards, and the orders in which they can be shown."""
        by_confidence = sorted(zip(self._examples.confidence[self._rows], self._of_split, strict=True))
        orders = {
            "errors": [number for number in self._of_split if not self.all[number]["right"]],
            "doubtful": [number for _, number in by_confidence[:MAX_DOUBTFUL]],
            "all": self._of_split,
        }
        return {"class_names": self._names, "examples": self.all, "orders": orders}


def confusions(examples: Examples) -> dict[str, Any]:
    """Return the confusion matrix if there are few classes, and the most frequent pairs if there are more than two."""
    num_classes = len(examples.facts.class_names)
    counts = np.zeros(2 * (num_classes if num_classes <= MAX_MATRIX else 0,), np.int64)
    if len(counts):
        np.add.at(counts, (examples.facts.predictions.labels, examples.predicted), 1)
    shades = np.ceil(5 * np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))).astype(int)
    return {
        "examples": examples,
        "names": examples.facts.class_names,
        "matrix": list(zip(counts.tolist(), shades.tolist(), strict=True)),
        "pairs": pairs(examples) if num_classes > 2 else [],
    }


def pairs(examples: Examples) -> list[tuple[int, int, int]]:
    """List at most MAX_PAIRS most frequent confusions as (label, prediction, number); ties are in order."""
    num_classes, errors = len(examples.facts.class_names), np.sort(examples.errors)
    labels = examples.facts.predictions.labels[errors].astype(np.int64)
    cells, numbers = np.unique(labels * num_classes + examples.predicted[errors], return_counts=True)
    most = np.argsort(-numbers, kind="stable")[:MAX_PAIRS]
    return [(*divmod(int(cells[k]), num_classes), int(numbers[k])) for k in most]


class Row(NamedTuple):
    """A class, type or group, the share of its examples that are classified correctly, and other figures."""

    name: str
    num_examples: int
    share: float | None
    interval: list[float] | None
    more: Sequence[float | None] = ()


class Table(NamedTuple):
    """Accuracy by a kind of group, the worst of `num` first, or recall, precision and F1 by "class"."""

    kind: str
    rows: list[Row]
    num: int
    of: clusters.Numbers | None  # the groups by which intervals are computed


def class_tables(examples: Examples) -> list[Table]:
    """Return the tables by class, and by type and group where there are several."""
    names, counts, predictions = examples.facts.class_names, examples.counts, examples.facts.predictions
    hits, of = examples.predicted == predictions.labels, clusters.numbers(predictions.groups)
    right = np.bincount(predictions.labels[hits], minlength=len(names))
    predicted = np.bincount(examples.predicted, minlength=len(names))
    share = np.where(counts, right / np.maximum(counts, 1), np.inf)
    every = np.sort(np.argsort(share, kind="stable")[:MAX_CLASSES])
    intervals = clusters.of_classes(predictions.labels, hits, of, len(names))
    intervals = intervals and [intervals[k] for k in every.tolist()]
    scores = figures.of_classes(right[every], counts[every], predicted[every], intervals)
    rows = [
        Row(names[k], each["num_examples"], each["recall"], each["interval"], (each["precision"], each["f1"]))
        for k, each in zip(every, scores, strict=True)
    ]
    by_kind = {"type": predictions.types.tolist(), "group": predictions.groups.tolist()}
    tables = [_by(kind, kinds, hits, predictions) for kind, kinds in by_kind.items() if len(set(kinds)) > 1]
    return [Table("class", rows, len(names), of), *tables]


def _by(kind: str, kinds: Sequence[str], hits: NDArray[np.bool_], predictions: Predictions) -> Table:
    of = clusters.beside(kinds, predictions.groups.tolist())
    names, numbers = np.unique(np.array(kinds), return_inverse=True)
    totals = np.bincount(numbers)
    shares = np.bincount(numbers, weights=hits) / totals
    rows = []
    for k in np.argsort(shares, kind="stable")[:_MAX_GROUPS].tolist():
        interval = clusters.interval(hits[numbers == k], None if of is None else of[numbers == k])
        rows.append(Row(str(names[k]), int(totals[k]), float(shares[k]), interval))
    return Table(kind, rows, len(names), of)
