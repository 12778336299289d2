"""The first thing that a report says: how good it is, how sure that is, and what stands out."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.runs.records import flattered
from tl_dist.scores import cross_validation, evaluation, figures
from tl_dist.tools.report.duplicates import Twin
from tl_dist.tools.report.examples import Examples, pairs
from tl_dist.tools.report.facts import OUT_OF_FOLD_SPLIT, Facts
from tl_dist.tools.report.page import percent
from tl_dist.tools.report.technical import duration, workers_of

_NAMES = {
    "top5": ("top-5 accuracy", "right class among the first five"),
    "balanced_accuracy": ("balanced accuracy", "mean recall over classes"),
    "macro_f1": ("macro F1", "mean over classes"),
    "mcc": ("MCC", "0: no better than chance"),
    "roc_auc": ("ROC-AUC", "0.5: no better than chance"),
    "log_loss": ("log loss", "of probabilities; less is better"),
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
    """Content of the first section."""
    facts, num = examples.facts, examples.num_examples
    said = facts.said
    found = figures.figures(said.labels, said.probabilities, said.groups)
    accuracy, below = found["accuracy"], ""
    kind = f"{found.get('interval_by', 'Wilson')}: how well this one split is known"
    crossed = facts.done.get("cross_validation")
    if facts.split == OUT_OF_FOLD_SPLIT and crossed:
        accuracy, found["interval"] = crossed["accuracy"], crossed["interval"]
        kind = f"mean of {_folds(crossed)}; Nadeau and Bengio: how it would vary with other data of this size"
        if crossed["seeds"] > 1:
            below = "All below is of the first seed; only labels are looked at by the mean over seeds."
    counts = examples.counts
    command, name = reproduction(facts)
    return {
        "accuracy": accuracy,
        "interval": found["interval"],
        "interval_kind": kind,
        "below": below,
        "num_examples": num,
        "split": "held-out" if facts.split == OUT_OF_FOLD_SPLIT else facts.split,
        "majority": facts.class_names[int(counts.argmax())],
        "majority_share": float(counts.max() / num),
        "figures": [
            (title, f"{found[key]:.3f}", hint)
            for key, (title, hint) in _NAMES.items()
            if found.get(key) is not None
        ],
        "findings": list(_findings(examples, found, tables=tables, twins=twins, notes=notes)),
        "model": model_sentence(facts),
        "data": data_sentence(facts),
        "config_name": name,
        "command": command,
        "config": read_file(facts.run.config_file, max_bytes=limits.RUN_JSON).decode("utf-8", "replace"),
    }


def _findings(
    examples: Examples,
    found: Mapping[str, Any],
    *,
    tables: Sequence[Mapping[str, Any]],
    twins: Sequence[Twin] | None,
    notes: Sequence[str],
) -> Iterator[Finding]:
    facts = examples.facts
    yield from (Finding("check", f"{text}.") for text in flattered(facts.run.path))
    yield from (Finding("note", text) for text in notes)
    if not facts.done:
        yield Finding("check", "The run has not ended: these are figures of its last evaluation.")
    if facts.split == OUT_OF_FOLD_SPLIT:
        unseen = cross_validation.never_seen_lines(facts.done["cross_validation"])
    else:
        of_split = facts.done.get("figures", {}).get(facts.split, {}).get("never_seen")
        unseen = [evaluation.never_seen_line(of_split)] if of_split else []
    yield from (Finding("check", f"{line[0].upper()}{line[1:]}.", "classes", "classes") for line in unseen)
    counts = examples.counts
    majority = float(counts.max() / examples.num_examples)
    if found["interval"][0] <= majority:
        yield Finding(
            "check", f"It is not surely better than always saying the commonest class ({percent(majority)})."
        )
    if twins:
        num_equal = sum(twin.equal for twin in twins)
        kind = "equal" if num_equal else "nearly alike"
        text = (
            f"{num_equal or len(twins):,} pairs of images in two splits are {kind}: if they show the same thing, the "
            "figures are too good."
        )
        many = len(twins) > _FEW * examples.num_examples
        yield Finding("check" if num_equal or many else "note", text, "duplicates", "duplicates")
    elif twins is not None:
        yield Finding("good", "No image is in two splits, equal or nearly so.")
    if num := len(examples.suspects.examples):
        share = num / len(examples.suspects_of.labels)
        text = f"{num:,} of {len(examples.suspects_of.labels):,} labels look wrong."
        if share > _TOO_MANY:
            text += " So many say more about the model than about the labels."
        yield Finding("check" if _FEW < share <= _TOO_MANY else "note", text, "labels", "labels")
    if worst := pairs(examples):
        one = worst[0]
        text = (
            f"Most often, “{one['label']}” is taken for “{one['predicted']}”: {one['count']} of {one['of']}."
        )
        yield Finding("note", text, "errors", "errors")
    yield from _of_tables(tables)
    yield from _of_confidence(examples, found)
    if (gap := _overfit(facts)) is not None:
        train, held_out = gap
        text = (
            f"In training it was right in {percent(train)}, on the validation split in {percent(held_out)}."
        )
        yield Finding("note", text, "learning", "learning curves")


def _of_tables(tables: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """The class that is recognised least; a type or group that is surely worse than another."""
    classes, *others = tables
    rows = [row for row in classes["rows"] if row["share"] is not None]
    least = min(rows, key=lambda row: row["share"])
    yield Finding(
        "note",
        f"The class recognised least is “{least['name']}”: {percent(least['share'])} of {least['num_examples']:,}.",
        "classes",
        "classes",
    )
    for table in others:
        low, high = table["rows"][0], table["rows"][-1]
        if low["interval"][1] < high["interval"][0]:
            text = (
                f"By {table['first']} it is unequal: {percent(low['share'])} of “{low['name']}”, "
                f"{percent(high['share'])} of “{high['name']}”."
            )
            yield Finding("check", text, "classes", "classes")


def _of_confidence(examples: Examples, found: Mapping[str, Any]) -> Iterator[Finding]:
    ece = found.get("ece")
    if ece is None:
        return
    sure = float(examples.confidence.mean())
    way = "over-confident" if sure > found["accuracy"] else "under-confident"
    if ece > _POORLY_CALIBRATED:
        text = f"It is {way}: {percent(sure)} sure in the mean, and right in {percent(found['accuracy'])}."
        yield Finding("check", text, "calibration", "calibration")
    else:
        yield Finding("good", f"Its confidence is about right (ECE {ece:.3f}).", "calibration", "calibration")


def _overfit(facts: Facts) -> tuple[float, float] | None:
    """Accuracy in training and on the validation split, where they are far apart."""
    train = facts.events("train")[-5:]
    validation = [one for one in facts.events("evaluation") if one["split"] == "validation"]
    if not train or not validation:
        return None
    known, held_out = float(np.mean([one["accuracy"] for one in train])), float(validation[-1]["accuracy"])
    return (known, held_out) if known - held_out > _OVERFIT else None


def reproduction(facts: Facts) -> tuple[str, str]:
    """The command that trains it again, and the name of its config."""
    name = f"{facts.run.name}.yaml"
    crossed = facts.done.get("cross_validation")
    if not crossed or facts.split != OUT_OF_FOLD_SPLIT:
        return shlex.join(["tl-dist", "train", name]), name
    by = _held_out(crossed)
    own = f"name={facts.run.name.removesuffix(cross_validation.name_of('', by))}"
    folds = (
        ["--folds", str(crossed["folds"]), "--seeds", str(crossed["seeds"])] if by is None else ["--by", by]
    )
    return shlex.join(["tl-dist", "cv", name, own, *folds]), name


def _held_out(crossed: Mapping[str, Any]) -> str | None:
    """What `tl-dist cv --by` was told; None where examples were divided into folds by chance."""
    kinds: Iterable[str] = crossed.get("left_out", ())
    return next(iter(kinds), None)


def _folds(crossed: Mapping[str, Any]) -> str:
    """Over what its figures are a mean: "5 folds x 2 seeds"."""
    folds, seeds, by = crossed["folds"], crossed["seeds"], _held_out(crossed)
    if by is not None:
        return f"{folds} groups by {by}, each held out once"
    return f"{folds} folds x {seeds} seed{'s' * (seeds != 1)}"


def model_sentence(facts: Facts) -> str:
    """What was trained, from what, and for how long."""
    cfg, done = facts.cfg, facts.done
    start = f"the weights of run “{cfg.source.run}”" if cfg.source else f"weights “{cfg.model.weights}”"
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
        parts.append(f"by {workers} worker{'s' * (workers != 1)}")
    if took := duration(facts):
        parts.append(f"in {took}")
    if done.get("best"):
        parts.append("with the weights of its best checkpoint")
    return f"{', '.join(parts)}."


def data_sentence(facts: Facts) -> str:
    """Which data set, and how large its splits are."""
    data = facts.cfg.data
    where = f" in {data.path}" if data.path else ""
    size = f" at {data.image_size} pixels" if data.image_size else ""
    sizes = ", ".join(f"{split} {num:,}" for split, num in facts.split_sizes.items())
    splits = f" Images: {sizes}." if sizes else ""
    return f"Data set “{data.name}”{where}, {len(facts.class_names):,} classes{size}.{splits}"
