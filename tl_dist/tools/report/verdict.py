"""The first section of a report: how good the run is, how certain that is, and what stands out."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.runs.records import flattered
from tl_dist.scores import cross_validation, figures
from tl_dist.scores.text import never_seen, never_seen_by_fold
from tl_dist.tools.report.duplicates import Twin
from tl_dist.tools.report.examples import Examples, pairs
from tl_dist.tools.report.facts import OUT_OF_FOLD_SPLIT, Facts
from tl_dist.tools.report.page import percent
from tl_dist.tools.report.technical import duration, workers_of

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
    place: str = ""


def verdict(
    examples: Examples,
    *,
    tables: Sequence[Mapping[str, Any]],
    twins: Sequence[Twin] | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return the content of the first section."""
    facts, num = examples.facts, examples.num_examples
    predictions = facts.predictions
    scores = figures.figures(predictions.labels, predictions.probabilities, predictions.groups)
    accuracy, below = scores["accuracy"], ""
    kind = f"{scores.get('interval_by', 'Wilson')}: how well this one split measures the accuracy"
    summary = facts.done.get("cross_validation")
    if facts.split == OUT_OF_FOLD_SPLIT and summary:
        accuracy, scores["interval"] = summary["accuracy"], summary["interval"]
        kind = f"mean of {_folds(summary)}; Nadeau and Bengio: how it would vary with other data of this size"
        if summary["seeds"] > 1:
            below = "Everything below is from the first seed; only labels are checked by the mean over seeds."
    counts = examples.counts
    command, name = reproduction(facts)
    return {
        "accuracy": accuracy,
        "interval": scores["interval"],
        "interval_kind": kind,
        "below": below,
        "num_examples": num,
        "split": "held-out" if facts.split == OUT_OF_FOLD_SPLIT else facts.split,
        "majority": facts.class_names[int(counts.argmax())],
        "majority_share": float(counts.max() / num),
        "figures": [
            (title, f"{scores[key]:.3f}", hint)
            for key, (title, hint) in _NAMES.items()
            if scores.get(key) is not None
        ],
        "findings": list(_findings(examples, scores, tables=tables, twins=twins, notes=notes)),
        "model": model_sentence(facts),
        "data": data_sentence(facts),
        "config_name": name,
        "command": command,
        "config": read_file(facts.run.config_file, max_bytes=limits.RUN_JSON).decode("utf-8", "replace"),
    }


def _findings(
    examples: Examples,
    scores: Mapping[str, Any],
    *,
    tables: Sequence[Mapping[str, Any]],
    twins: Sequence[Twin] | None,
    notes: Sequence[str],
) -> Iterator[Finding]:
    facts = examples.facts
    yield from (Finding("check", f"{text}.") for text in flattered(facts.run.path))
    yield from (Finding("note", text) for text in notes)
    if not facts.done:
        yield Finding("check", "The run has not ended: the figures are from its last evaluation.")
    if facts.split == OUT_OF_FOLD_SPLIT:
        unseen = never_seen_by_fold(facts.done["cross_validation"])
    else:
        of_split = facts.done.get("figures", {}).get(facts.split, {}).get("never_seen")
        unseen = [never_seen(of_split)] if of_split else []
    yield from (Finding("check", f"{line[0].upper()}{line[1:]}.", "classes", "classes") for line in unseen)
    counts = examples.counts
    majority = float(counts.max() / examples.num_examples)
    if scores["interval"][0] <= majority:
        text = f"The model may be no better than always predicting the most frequent class ({percent(majority)})."
        yield Finding("check", text)
    if twins:
        num_equal = sum(twin.equal for twin in twins)
        kind = "equal" if num_equal else "nearly equal"
        text = (
            f"{num_equal or len(twins):,} pairs of {kind} images are in different splits: if they show the same "
            "thing, the figures are too good."
        )
        many = len(twins) > _FEW * examples.num_examples
        yield Finding("check" if num_equal or many else "note", text, "duplicates", "duplicates")
    elif twins is not None:
        yield Finding("good", "No two images in different splits are equal or nearly equal.")
    if num := len(examples.suspects.examples):
        share = num / len(examples.suspects_of.labels)
        text = f"{num:,} of {len(examples.suspects_of.labels):,} labels look wrong."
        if share > _TOO_MANY:
            text += " That many suggest a weak model rather than wrong labels."
        yield Finding("check" if _FEW < share <= _TOO_MANY else "note", text, "labels", "labels")
    if worst := pairs(examples):
        pair = worst[0]
        text = (
            f"The most frequent confusion: {pair['count']} of {pair['of']} images of “{pair['label']}” are "
        )
        yield Finding("note", f"{text}classified as “{pair['predicted']}”.", "errors", "errors")
    yield from _of_tables(tables)
    yield from _of_confidence(examples, scores)
    if (gap := _overfit(facts)) is not None:
        train, held_out = gap
        text = f"Training accuracy was {percent(train)}, validation accuracy {percent(held_out)}."
        yield Finding("note", text, "learning", "learning curves")


def _of_tables(tables: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Name the class with the lowest recall, and a type or group that is surely worse than another."""
    classes, *others = tables
    rows = [row for row in classes["rows"] if row["share"] is not None]
    least = min(rows, key=lambda row: row["share"])
    yield Finding(
        "note",
        f"The class with the lowest recall is “{least['name']}”: {percent(least['share'])} of "
        f"{least['num_examples']:,} images.",
        "classes",
        "classes",
    )
    for table in others:
        low, high = table["rows"][0], table["rows"][-1]
        if low["interval"][1] < high["interval"][0]:
            text = (
                f"Accuracy differs by {table['first']}: {percent(low['share'])} for “{low['name']}”, "
                f"{percent(high['share'])} for “{high['name']}”."
            )
            yield Finding("check", text, "classes", "classes")


def _of_confidence(examples: Examples, scores: Mapping[str, Any]) -> Iterator[Finding]:
    ece = scores.get("ece")
    if ece is None:
        return
    sure = float(examples.confidence.mean())
    way = "over-confident" if sure > scores["accuracy"] else "under-confident"
    if ece > _POORLY_CALIBRATED:
        text = f"The model is {way}: mean confidence {percent(sure)}, accuracy {percent(scores['accuracy'])}."
        yield Finding("check", text, "calibration", "calibration")
    else:
        yield Finding("good", f"The model is well calibrated (ECE {ece:.3f}).", "calibration", "calibration")


def _overfit(facts: Facts) -> tuple[float, float] | None:
    """Return the accuracies of training and validation if they are far apart, else None."""
    train = facts.events("train")[-5:]
    validation = [record for record in facts.events("evaluation") if record["split"] == "validation"]
    if not train or not validation:
        return None
    fitted = float(np.mean([record["accuracy"] for record in train]))
    held_out = float(validation[-1]["accuracy"])
    return (fitted, held_out) if fitted - held_out > _OVERFIT else None


def reproduction(facts: Facts) -> tuple[str, str]:
    """Return the command that reproduces the run, and the name of the config it reads."""
    name = f"{facts.run.name}.yaml"
    summary = facts.done.get("cross_validation")
    if not summary or facts.split != OUT_OF_FOLD_SPLIT:
        return shlex.join(["tl-dist", "train", name]), name
    by = _held_out(summary)
    own = f"name={facts.run.name.removesuffix(cross_validation.name_of('', by))}"
    folds = (
        ["--folds", str(summary["folds"]), "--seeds", str(summary["seeds"])] if by is None else ["--by", by]
    )
    return shlex.join(["tl-dist", "cv", name, own, *folds]), name


def _held_out(summary: Mapping[str, Any]) -> str | None:
    """Return the value of `tl-dist cv --by`; None if the folds are random."""
    kinds: Iterable[str] = summary.get("left_out", ())
    return next(iter(kinds), None)


def _folds(summary: Mapping[str, Any]) -> str:
    """Describe what the figures are a mean over: "5 folds x 2 seeds"."""
    folds, seeds, by = summary["folds"], summary["seeds"], _held_out(summary)
    if by is not None:
        return f"{folds} groups by {by}, each held out once"
    return f"{folds} folds x {seeds} seed{'s' * (seeds != 1)}"


def model_sentence(facts: Facts) -> str:
    """Describe what was trained, from which weights, and for how long."""
    cfg, done = facts.cfg, facts.done
    start = f"the weights of run “{cfg.source.run}”" if cfg.source else f"the weights “{cfg.model.weights}”"
    parts = [f"{cfg.model.backbone} from {start}"]
    if cfg.classifier.computed:
        parts.append(f"with a {cfg.classifier.name} classifier on its features")
    else:
        parts.append(f"trained from “{cfg.model.train_from}” up")
    train = facts.events("train")
    if train:
        last = train[-1]
        parts.append(f"for {last['epoch']:.3g} epochs ({last['step']:,} steps of {cfg.global_batch} images)")
    if workers := workers_of(facts):
        parts.append(f"on {workers} worker{'s' * (workers != 1)}")
    if took := duration(facts):
        parts.append(f"in {took}")
    if done.get("best"):
        parts.append("with the weights of its best checkpoint")
    return f"{', '.join(parts)}."


def data_sentence(facts: Facts) -> str:
    """Describe the data set and the sizes of its splits."""
    data = facts.cfg.data
    where = f" in {data.path}" if data.path else ""
    size = f" at {data.image_size} pixels" if data.image_size else ""
    sizes = ", ".join(f"{split} {num:,}" for split, num in facts.split_sizes.items())
    splits = f" Images: {sizes}." if sizes else ""
    return f"Data set “{data.name}”{where}, {len(facts.class_names):,} classes{size}.{splits}"
