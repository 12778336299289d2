"""The first section of a report: how good the run is, how certain that is, and what stands out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.runs.records import flattered
from tl_dist.scores import cross_validation, figures
from tl_dist.scores.text import never_seen, never_seen_by_fold, percent
from tl_dist.tools.report.examples import Examples, Table, pairs
from tl_dist.tools.report.facts import Facts
from tl_dist.tools.report.images import Twin

_NAMES = {
    "top5": ("top-5 accuracy", "correct class among the five most probable"),
    "balanced_accuracy": ("balanced accuracy", "mean recall over classes"),
    "macro_f1": ("macro F1", "mean over classes"),
    "mcc": ("MCC", "0: no better than chance"),
    "roc_auc": ("ROC-AUC", "0.5: no better than chance"),
    "log_loss": ("log loss", "of the probabilities; lower is better"),
    "ece": ("ECE", "calibration error; 0 is best"),
}
_POORLY_CALIBRATED = 0.05
_OVERFIT = 0.1
_FEW, _TOO_MANY = 0.01, 0.2  # of all examples


class Finding(NamedTuple):
    """Something that a reader should know; `level` is check, note or good."""

    level: str
    text: str
    anchor: str = ""


def verdict(
    examples: Examples, tables: Sequence[Table], twins: Sequence[Twin] | None, notes: Sequence[str]
) -> dict[str, Any]:
    """Return the content of the first section."""
    facts, predictions = examples.facts, examples.facts.predictions
    scores = figures.figures(predictions.labels, predictions.probabilities, predictions.groups)
    accuracy = scores["accuracy"]
    if facts.folds:
        accuracy, scores["interval"] = facts.folds["accuracy"], facts.folds["interval"]
    return {
        "facts": facts,
        "accuracy": accuracy,
        "interval": scores["interval"],
        "interval_by": scores.get("interval_by", "Wilson"),
        "by": _held_out(facts),
        "num_examples": examples.num_examples,
        "majority": facts.class_names[int(examples.counts.argmax())],
        "majority_share": float(examples.counts.max() / examples.num_examples),
        "figures": [
            (title, f"{scores[key]:.3f}", hint)
            for key, (title, hint) in _NAMES.items()
            if scores.get(key) is not None
        ],
        "findings": [
            *(Finding("check", f"{text}.") for text in flattered(facts.run.path)),
            *(Finding("note", text) for text in notes),
            *_of_run(facts),
            *_of_data(examples, scores["interval"], twins),
            *_of_tables(*tables),
            *_of_learning(examples, scores),
        ],
        "command": _command(facts),
        "config": read_file(facts.run.config_file, max_bytes=limits.RUN_JSON).decode("utf-8", "replace"),
    }


def _of_run(facts: Facts) -> Iterator[Finding]:
    if not facts.done:
        yield Finding("check", "The run has not ended: the figures are from its last evaluation.")
    if facts.folds is not None:
        unseen = never_seen_by_fold(facts.folds)
    else:
        of_split = facts.done.get("figures", {}).get(facts.split, {}).get("never_seen")
        unseen = [never_seen(of_split)] if of_split else []
    yield from (Finding("check", f"{line[0].upper()}{line[1:]}.", "classes") for line in unseen)


def _of_data(
    examples: Examples, interval: Sequence[float], twins: Sequence[Twin] | None
) -> Iterator[Finding]:
    """Compare with the most frequent class; tell of near duplicates, doubtful labels and confusions."""
    num, counts = examples.num_examples, examples.counts
    if interval[0] <= (majority := float(counts.max() / num)):
        text = f"The model may be no better than always predicting the most frequent class ({percent(majority)})."
        yield Finding("check", text)
    if twins:
        num_equal = sum(equal for equal, _ in twins)
        text = (
            f"{num_equal or len(twins):,} pairs of {'equal' if num_equal else 'nearly equal'} images are in different "
            "splits: if they show the same thing, the figures are too good."
        )
        yield Finding("check" if num_equal or len(twins) > _FEW * num else "note", text, "duplicates")
    elif twins is not None:
        yield Finding("good", "No two images in different splits are equal or nearly equal.")
    if wrong := len(examples.suspects.examples):
        checked = len(examples.suspects_of.labels)
        text = f"{wrong:,} of {checked:,} labels look wrong."
        if wrong / checked > _TOO_MANY:
            text += " That many suggest a weak model rather than wrong labels."
        yield Finding("check" if _FEW < wrong / checked <= _TOO_MANY else "note", text, "labels")
    for label, predicted, count in pairs(examples)[:1]:
        names = examples.facts.class_names
        text = f"The most frequent confusion: {count} of {counts[label]} images of “{names[label]}” are classified as"
        yield Finding("note", f"{text} “{names[predicted]}”.", "errors")


def _of_tables(classes: Table, *others: Table) -> Iterator[Finding]:
    """Name the class with the lowest recall, and a type or group that is surely worse than another."""
    least, recall = min(
        ((row, row.share) for row in classes.rows if row.share is not None), key=lambda pair: pair[1]
    )
    text = f"The class with the lowest recall is “{least.name}”: {percent(recall)} of {least.num_examples:,} images."
    yield Finding("note", text, "classes")
    for kind, rows, *_ in others:
        low, high = rows[0], rows[-1]
        if low.interval and high.interval and low.interval[1] < high.interval[0]:
            text = f"Accuracy differs by {kind}: {percent(low.share)} for “{low.name}”, {percent(high.share)} for"
            yield Finding("check", f"{text} “{high.name}”.", "classes")


def _of_learning(examples: Examples, scores: Mapping[str, Any]) -> Iterator[Finding]:
    """Tell of over-confidence, and of a training accuracy far above the validation accuracy."""
    facts, ece, accuracy = examples.facts, scores.get("ece"), scores["accuracy"]
    if ece is not None and ece > _POORLY_CALIBRATED:
        sure = float(examples.confidence.mean())
        way = "over-confident" if sure > accuracy else "under-confident"
        text = f"The model is {way}: mean confidence {percent(sure)}, accuracy {percent(accuracy)}."
        yield Finding("check", text, "calibration")
    elif ece is not None:
        yield Finding("good", f"The model is well calibrated (ECE {ece:.3f}).", "calibration")
    train = [record["accuracy"] for record in facts.events("train")[-5:]]
    held_out = [r["accuracy"] for r in facts.events("evaluation") if r["split"] == "validation"]
    if train and held_out and (fitted := float(np.mean(train))) - held_out[-1] > _OVERFIT:
        text = f"Training accuracy was {percent(fitted)}, validation accuracy {percent(held_out[-1])}."
        yield Finding("note", text, "learning")


def _command(facts: Facts) -> str:
    """Return the command that reproduces the run from its config."""
    name, folds, by = facts.run.name, facts.folds, _held_out(facts)
    if not folds:
        return shlex.join(["tl-dist", "train", f"{name}.yaml"])
    options = ["--by", by] if by else ["--folds", str(folds["folds"]), "--seeds", str(folds["seeds"])]
    config = name.removesuffix(cross_validation.name_of("", by))
    return shlex.join(["tl-dist", "cv", f"{name}.yaml", f"name={config}", *options])


def _held_out(facts: Facts) -> str | None:
    """Return the value of `tl-dist cv --by`; None if the folds are random."""
    return next(iter((facts.folds or {}).get("left_out", ())), None)
