"""What a run said of each example: RUN/predictions/SPLIT.npz, for paired tests, ensembles and a look at the errors.

The arrays are `ids` (text), `labels` int32 [N], `probabilities` float32 [N, classes], `class_names`, `step` and, as
text, `types` and `groups`; older files call the types `groups`. No pickled object is ever written or read. A confusion
matrix that is too large for a record lies beside it: RUN/predictions/SPLIT_confusion.npz, int64 [true class, predicted
class], with `class_names` and `step`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tl_dist.files.atomic import replacing
from tl_dist.files.npz import load_npz
from tl_dist.scores import calibration, clusters, evaluation, figures
from tl_dist.scores.evaluation import Evaluation

MAX_RECORDED_CLASSES = 100
"""up to which a record of an evaluation has the confusion matrix: of 1,000 classes it would be 3 MB each time"""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The probabilities of each example of a split; `step` is that of the weights."""

    ids: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: np.ndarray
    step: int
    types: np.ndarray
    """the type of each example, as its kind of solar cell; empty where the dataset has none"""
    groups: np.ndarray = field(default_factory=lambda: np.array([], np.str_))
    """the group of each, such as its patient, whose images stay in one split; empty likewise, and in older files"""

    def __post_init__(self) -> None:
        num, classes = len(self.labels), len(self.class_names)
        fits = {
            "ids": self.ids.shape == (num,) and self.ids.dtype.kind == "U",
            "labels": self.labels.shape == (num,) and self.labels.dtype.kind in "iu",
            "class_names": self.class_names.shape == (classes,) and self.class_names.dtype.kind == "U",
            "probabilities": self.probabilities.shape == (num, classes)
            and self.probabilities.dtype.kind == "f",
            "types": self.types.shape in ((num,), (0,)) and self.types.dtype.kind in "US",
            "groups": self.groups.shape in ((num,), (0,)) and self.groups.dtype.kind in "US",
        }
        wrong = [name for name, right in fits.items() if not right]
        if wrong:
            raise ValueError(f"its {' and '.join(wrong)} have another shape or type than predictions")
        if not num or not ((self.labels >= 0) & (self.labels < classes)).all():
            raise ValueError(f"its labels are not those of {classes} classes")


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a run says of images that were given to it; `step` is that of the weights."""

    ids: np.ndarray
    """text [N]: the files, in the order in which they were given"""
    probabilities: np.ndarray
    """float32 [N, classes]"""
    class_names: np.ndarray
    step: int
    errors: Mapping[str, str]
    """files that cannot be decoded, which have no row, and why"""


def file_of(run: Path, split: str) -> Path:
    """Where a run keeps the predictions of a split."""
    return run / "predictions" / f"{split}.npz"


def confusion_file_of(run: Path, split: str) -> Path:
    """Where a run keeps the confusion matrix of a split of more than MAX_RECORDED_CLASSES."""
    return run / "predictions" / f"{split}_confusion.npz"


def save(path: Path, **arrays: Any) -> None:
    """Write arrays as one .npz, without a copy in memory: the old file or the new one, whatever happens."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with replacing(path) as fd, os.fdopen(fd, "wb", closefd=False) as file:
        np.savez(file, **arrays)


def load(path: Path) -> Predictions:
    """Refuses (65) what is not there or no file of predictions."""
    return load_npz(
        path,
        lambda found: Predictions(
            found["ids"],
            found["labels"],
            found["probabilities"],
            found["class_names"],
            int(found["step"]),
            *(found[k] for k in ("types", "groups") if k in found),
        ),
        what="predictions",
        fix="name a run that has ended, or evaluate it: tl-dist eval RUN --split SPLIT.",
    )


def with_figures(
    result: Evaluation,
    run: Path,
    *,
    step: int,
    ids: Sequence[str],
    labels: np.ndarray,
    class_names: Sequence[str],
    types: Sequence[str] = (),
    groups: Sequence[str] = (),
    temperature: float | None = None,
    num_fitted: int = 0,
    trained: np.ndarray | None = None,
) -> Evaluation:
    """The evaluation with all its figures; what it predicted is kept in the run.

    For two classes and a validation split, the threshold is chosen on it, and reported for the other splits. With the
    `temperature` of a calibrated run, fitted to its validation split and so to `num_fitted` examples of another data
    set, it is also said what that changes, and with the labels that were `trained` on what classes they lack; what is
    kept is what the network said. The logits are used up: as float32 probabilities they would be as large again.
    """
    if len(class_names) > MAX_RECORDED_CLASSES:
        path = confusion_file_of(run, result.split)
        save(path, confusion=result.confusion, class_names=np.array(class_names), step=step)
    if result.logits is None:
        return result
    said = figures.Softmax(result.logits)
    found = figures.figures(labels, said, groups)
    of = clusters.numbers(groups)
    hits = None if of is None else figures.confidences(labels, said).hits
    if trained is not None and (classes := evaluation.never_seen(trained, labels, class_names)):
        found["never_seen"] = classes
    if len(class_names) == 2 and found["log_loss"] is not None:
        probabilities = said[:]
        if result.split == "validation":
            found["threshold"] = figures.best_threshold(labels, probabilities)
        elif (threshold := _threshold(run, step)) is not None:
            found["threshold"] = threshold
            found["accuracy_at_threshold"] = figures.accuracy_at(labels, probabilities, threshold)
    if temperature is not None:
        fitted = len(labels) if result.split == "validation" else num_fitted
        found["calibration"] = calibration.before_and_after(labels, result.logits, temperature, of, fitted)
    save(
        file_of(run, result.split),
        ids=np.array(ids),
        labels=labels,
        probabilities=said.in_place(),
        class_names=np.array(class_names),
        step=step,
        types=np.array(types, np.str_),
        groups=np.array(groups, np.str_),
    )
    return dataclasses.replace(
        result,
        figures=found,
        logits=None,
        class_intervals=clusters.of_classes(labels, hits, of, len(class_names)),
    )


def _threshold(run: Path, step: int) -> float | None:
    """The one chosen on the validation examples by the same weights."""
    path = file_of(run, "validation")
    if not path.exists():
        return None
    chosen = load(path)
    return figures.best_threshold(chosen.labels, chosen.probabilities) if chosen.step == step else None
