"""A run's predictions for each example: RUN/predictions/SPLIT.npz, for paired tests, ensembles and error analysis.

A confusion matrix that is too large for a record is stored beside it: RUN/predictions/SPLIT_confusion.npz, int64 [true
class, predicted class], with `class_names` and `step`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from tl_dist.files.npz import save_npz
from tl_dist.scores import calibration, clusters, evaluation, figures
from tl_dist.scores.arrays import Arrays, no_text
from tl_dist.scores.decision import Decision
from tl_dist.scores.evaluation import Evaluation

MAX_RECORDED_CLASSES = 100
"""most classes for which the record of an evaluation has the confusion matrix: with 1,000 it would take 3 MB"""


@dataclass(frozen=True, eq=False)
class Predictions(Arrays):
    """Probabilities of each example of a split; `step` is the step of the weights."""

    WHAT = "predictions"
    FIX = "name a run that has ended, or evaluate it: tl-dist eval RUN --split SPLIT."

    ids: Annotated[np.ndarray, "U examples"]
    labels: Annotated[np.ndarray, "iu examples"]
    probabilities: Annotated[np.ndarray, "f examples classes"]
    class_names: Annotated[np.ndarray, "U classes"]
    step: int
    types: Annotated[np.ndarray, "US examples?"]
    """type of each example, such as its kind of solar cell; empty if the dataset has none"""
    groups: Annotated[np.ndarray, "US examples?"] = field(default_factory=no_text)
    """group of each example, such as its patient, whose images stay in one split; may be empty as well"""
    targets: Annotated[np.ndarray, "f examples classes?"] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """what is said of each example, where that is not one class: numbers, or 0 and 1 by label, and `probabilities` are
    the answers; else empty, and then `labels` say it"""

    @property
    def truth(self) -> np.ndarray:
        """Return the targets, or the labels where there are none."""
        return self.targets if len(self.targets) else self.labels

    def of_class(self, k: int) -> np.ndarray:
        """Tell which examples are of a class, or have a label."""
        return self.targets[:, k] > 0.5 if len(self.targets) else self.labels == k

    def __post_init__(self) -> None:
        super().__post_init__()
        classes = len(self.class_names)
        if not ((self.labels >= 0) & (self.labels < classes)).all():
            raise ValueError(f"its labels do not fit {classes} classes")


load = Predictions.load


@dataclass(frozen=True, eq=False)
class Predicted:
    """A run's predictions for images from outside its data; `step` is the step of the weights."""

    ids: np.ndarray  # text [N]: the files, in the order of the request
    probabilities: np.ndarray  # float32 [N, classes]
    class_names: np.ndarray
    step: int
    errors: Mapping[str, str]  # files that cannot be decoded, which have no row, and the reasons


def file_of(run: Path, split: str) -> Path:
    """Return the file of a run's predictions for a split."""
    return run / "predictions" / f"{split}.npz"


def confusion_file_of(run: Path, split: str) -> Path:
    """Return the file of a split's confusion matrix with more than MAX_RECORDED_CLASSES classes."""
    return run / "predictions" / f"{split}_confusion.npz"


def with_figures(
    result: Evaluation,
    run: Path,
    *,
    step: int,
    ids: Sequence[str],
    truth: np.ndarray,
    class_names: Sequence[str],
    types: Sequence[str] = (),
    groups: Sequence[str] = (),
    temperature: float | None = None,
    num_fitted: int = 0,
    decision: Decision | None = None,
    trained: np.ndarray | None = None,
    judge: figures.Judge = figures.figures,
    answers: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Evaluation:
    """Return the evaluation with all its figures, and store its predictions in the run.

    With two classes, the threshold is chosen on the validation split and reported for the other splits. With the
    `temperature` of a calibrated run (fitted to its validation split, or `num_fitted` examples of other data), the
    figures show what it changes, and so they do with the `decision` of `tl-dist threshold`; with the `trained` labels,
    which classes these lack. `judge` returns the figures of the run's task. The stored probabilities are not
    calibrated. They overwrite the logits, to save memory. If the `truth` is targets, `answers` makes answers of logits.
    """
    texts, labels = (np.array(types, np.str_), np.array(groups, np.str_)), truth
    if truth.ndim > 1:
        if result.logits is None or answers is None:
            return result
        numbers, no_class = answers(result.logits).astype(np.float32), np.zeros(len(truth), np.int32)
        predicted = Predictions(np.array(ids), no_class, numbers, np.array(class_names), step, *texts, truth)
        return _of_targets(result, run, predicted, decision, judge)
    if len(class_names) > MAX_RECORDED_CLASSES:
        path = confusion_file_of(run, result.split)
        save_npz(path, confusion=result.confusion, class_names=np.array(class_names), step=step)
    if result.logits is None:
        return result
    softmax = figures.Softmax(result.logits)
    values = judge(labels, softmax, groups)
    of = clusters.numbers(groups)
    hits = None if of is None else figures.confidences(labels, softmax).hits
    if trained is not None and (classes := evaluation.never_seen(trained, labels, class_names)):
        values["never_seen"] = classes
    if len(class_names) == 2 and values["log_loss"] is not None:
        probabilities = softmax[:]
        if result.split == "validation":
            values["threshold"] = figures.best_threshold(labels, probabilities)
        elif (threshold := _threshold(run, step)) is not None:
            values["threshold"] = threshold
            values["accuracy_at_threshold"] = figures.accuracy_at(labels, probabilities, threshold)
    if temperature is not None:
        fitted = len(labels) if result.split == "validation" else num_fitted
        values["calibration"] = calibration.before_and_after(labels, result.logits, temperature, of, fitted)
    if decision is not None:
        shown = figures.Softmax(result.logits, decision.temperature)[:]
        values["decision"] = decision.effect(labels, shown, groups) | {"chosen_here": result.split == "validation"}
    predicted = Predictions(np.array(ids), labels, softmax.in_place(), np.array(class_names), step, *texts)
    predicted.save(file_of(run, result.split))
    intervals = clusters.of_classes(labels, hits, of, len(class_names))
    return replace(result, figures=values, logits=None, class_intervals=intervals)


def _of_targets(
    result: Evaluation, run: Path, predicted: Predictions, decision: Decision | None, judge: figures.Judge
) -> Evaluation:
    """Store predictions of labels or numbers, and return the evaluation with their figures."""
    predicted.save(file_of(run, result.split))
    truth, answers = predicted.targets, predicted.probabilities
    values = judge(truth, answers, predicted.groups)
    if decision is not None:
        effect = decision.effect_on_labels(truth > 0.5, answers)
        values["decision"] = effect | {"chosen_here": result.split == "validation"}
    return replace(result, figures=values, logits=None)


def _threshold(run: Path, step: int) -> float | None:
    """Return the threshold chosen on the validation examples with the same weights, if they were evaluated."""
    path = file_of(run, "validation")
    if not path.exists():
        return None
    chosen = load(path)
    return figures.best_threshold(chosen.labels, chosen.probabilities) if chosen.step == step else None
