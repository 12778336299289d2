"""Report on one run: choose the sections, and fill those without charts."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tl_dist import tasks
from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.runs.records import flattered
from tl_dist.scores import cross_validation, decision
from tl_dist.scores.text import decision as decision_text
from tl_dist.scores.text import never_seen, never_seen_by_fold, percent
from tl_dist.tools.report import charted
from tl_dist.tools.report.examples import (
    MAX_SUSPECTS,
    Cards,
    Examples,
    Table,
    class_tables,
    confusions,
    pairs,
)
from tl_dist.tools.report.facts import Facts
from tl_dist.tools.report.images import MAX_TWINS, Twin
from tl_dist.tools.report.page import Section, render

_POORLY_CALIBRATED = 0.05
_OVERFIT = 0.1
_FEW, _TOO_MANY = 0.01, 0.2  # of all examples
Finding = tuple[str, str, str]  # check, note or good; what a reader should know; the anchor of a section


def page(examples: Examples, *, twins: Sequence[Twin] | None, notes: Sequence[str]) -> bytes:
    """Render the page of a run. `twins` are near duplicates across splits; None if they were not searched for."""
    facts, cards = examples.facts, Cards(examples)
    tables = class_tables(examples)
    # Both add cards, so they come before `for_script`.
    mapped = [k for k in examples.errors.tolist() if str(facts.predictions.ids[k]) in examples.heat]
    worst, labels = cards.tiles(facts.predictions, mapped), _labels(examples, cards)
    duplicates = None if twins is None else {"twins": twins, "shown": MAX_TWINS, "images": examples.images}
    sections = [
        Section("verdict", "Verdict", "verdict", _verdict(examples, tables, twins, notes)),
        Section("errors", "Errors", "errors", confusions(examples)),
        Section("classes", "Classes", "classes", {"tables": tables}),
        Section("worst", "Worst errors", "worst", {"tiles": worst} if worst else None),
        Section("labels", "Labels", "labels", labels),
        Section("duplicates", "Duplicates", "duplicates", duplicates),
        Section("calibration", "Calibration", "calibration", charted.calibrated(examples)),
        Section("thresholds", "Thresholds", "thresholds", charted.thresholds(examples)),
        Section("robustness", "Robustness", "robustness", charted.robust(facts)),
        Section("learning", "Learning curves", "charts", charted.learning([facts])),
        Section("speed", "Speed", "speed", charted.speed(facts)),
        Section("environment", "Environment", "environment", environment(facts)),
    ]
    return render(facts.run.name, f"Report of a run, {facts.subject}", sections, cards.for_script())


def how_trained(facts: Facts) -> dict[str, str]:
    """Return the command that trains the run, and its config."""
    config = read_file(facts.run.config_file, max_bytes=limits.RUN_JSON).decode("utf-8", "replace")
    return {"command": _command(facts), "config": config}


def known(facts: Facts, notes: Sequence[str]) -> Iterator[Finding]:
    """Yield what a reader of any run's page should know first."""
    yield from (("check", f"{text}.", "") for text in flattered(facts.run.path))
    yield from (("note", text, "") for text in notes)
    if not facts.done:
        yield "check", "The run has not ended: the figures are from its last evaluation.", ""


def environment(facts: Facts) -> dict[str, Any] | None:
    """Return the content of the last section; None of a run that merges folds, each of them a run of its own."""
    norms = [_batch_norm(audit) for audit in facts.events("batch_norm")[-1:]]
    return {"facts": facts, "parts": norms} if facts.attempts or facts.records else None


def _labels(examples: Examples, cards: Cards) -> dict[str, Any]:
    suspects, checked, names = examples.suspects, examples.suspects_of, examples.facts.class_names
    rows = suspects.examples[:MAX_SUSPECTS].tolist()
    # Without heat maps: two pictures would be tiny in these tiles.
    tiles = [
        tile | {"more": f"more likely {names[likely]}", "heat": None}
        for k, likely in zip(rows, suspects.likely.tolist(), strict=False)
        for tile in cards.tiles(checked, [k])
    ]
    return {
        "facts": examples.facts,
        "num": len(suspects.examples),
        "num_checked": len(checked.labels),
        "ids": [str(checked.ids[k]) for k in rows],
        "tiles": tiles,
    }


def _batch_norm(audit: Mapping[str, Any]) -> tuple[Any, ...]:
    """Show how each batch-norm layer was treated, as measured on every worker; layers treated alike share a row."""
    alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for layer in audit["layers"]:
        alike.setdefault((layer["trainable"], layer["mode"], layer["statistics_moved"]), []).append(layer)
    rows = [
        (
            f"{len(layers)}: " + " to ".join(dict.fromkeys(layers[k]["layer"] for k in (0, -1))),
            "trained" if trainable else "frozen",
            str(mode),
            "updated" if moved else "unchanged",
            f"{max(layer['spread'] for layer in layers):.2g}",
        )
        for (trainable, mode, moved), layers in alike.items()
    ]
    sentence = f"Policy “{audit['policy']}”: how each layer was treated, measured on all workers at the end."
    names = ("layers", "scale and offset", "normalizes by", "statistics", "spread over workers")
    return "Batch norm", sentence, names, rows


def _verdict(
    examples: Examples, tables: Sequence[Table], twins: Sequence[Twin] | None, notes: Sequence[str]
) -> dict[str, Any]:
    """Return the content of the first section."""
    facts, predictions = examples.facts, examples.facts.predictions
    scores = tasks.of(facts.cfg).figures(predictions.labels, predictions.probabilities, predictions.groups)
    shown = {**scores, **({key: facts.folds[key] for key in ("accuracy", "interval")} if facts.folds else {})}
    return {
        "examples": examples,
        "scores": shown,
        "by": _held_out(facts),
        "findings": [
            *known(facts, notes),
            *_of_data(examples, shown["interval"], twins),
            *_of_tables(*tables),
            *_of_learning(examples, scores),
        ],
        **how_trained(facts),
    }


def _of_data(examples: Examples, interval: Sequence[float], twins: Sequence[Twin] | None) -> Iterator[Finding]:
    facts = examples.facts
    if facts.folds is not None:
        unseen = never_seen_by_fold(facts.folds)
    else:
        of_split = facts.done.get("figures", {}).get(facts.split, {}).get("never_seen")
        unseen = [never_seen(of_split)] if of_split else []
    yield from (("check", f"{line[0].upper()}{line[1:]}.", "classes") for line in unseen)
    num, counts = examples.num_examples, examples.counts
    if interval[0] <= (majority := float(counts.max() / num)):
        text = f"The model may be no better than always predicting the most frequent class ({percent(majority)})."
        yield "check", text, ""
    if twins:
        num_equal = sum(equal for equal, _ in twins)
        text = (
            f"{num_equal or len(twins):,} pairs of {'equal' if num_equal else 'nearly equal'} images are in different "
            "splits: if they show the same thing, the figures are too good."
        )
        yield "check" if num_equal or len(twins) > _FEW * num else "note", text, "duplicates"
    elif twins is not None:
        yield "good", "No two images in different splits are equal or nearly equal.", ""
    if wrong := len(examples.suspects.examples):
        checked = len(examples.suspects_of.labels)
        text = f"{wrong:,} of {checked:,} labels look wrong."
        if wrong / checked > _TOO_MANY:
            text += " That many suggest a weak model rather than wrong labels."
        yield "check" if _FEW < wrong / checked <= _TOO_MANY else "note", text, "labels"
    predictions = facts.predictions
    rule = decision.kept(facts.run.path, len(facts.class_names)) if facts.folds is None else None
    if rule is not None and rule.step == predictions.step:
        probabilities = decision.calibrated(predictions.probabilities, rule.temperature)
        effect = rule.effect(predictions.labels, probabilities, predictions.groups.tolist())
        effect["chosen_here"] = facts.split == "validation"
        yield "note", f"The rule of tl-dist threshold, {decision_text(effect)}.", "thresholds"
    for label, predicted, count in pairs(examples)[:1]:
        names = examples.facts.class_names
        text = f"The most frequent confusion: {count} of {counts[label]} images of “{names[label]}” are classified as"
        yield "note", f"{text} “{names[predicted]}”.", "errors"


def _of_tables(classes: Table, *others: Table) -> Iterator[Finding]:
    """Name the class with the lowest recall, and a type or group that is surely worse than another."""
    least, recall = min(((row, row.share) for row in classes.rows if row.share is not None), key=lambda pair: pair[1])
    text = f"The class with the lowest recall is “{least.name}”: {percent(recall)} of {least.num_examples:,} images."
    yield "note", text, "classes"
    for kind, rows, *_ in others:
        low, high = rows[0], rows[-1]
        if low.interval and high.interval and low.interval[1] < high.interval[0]:
            text = f"Accuracy differs by {kind}: {percent(low.share)} for “{low.name}”, {percent(high.share)} for"
            yield "check", f"{text} “{high.name}”.", "classes"


def _of_learning(examples: Examples, scores: Mapping[str, Any]) -> Iterator[Finding]:
    """Tell of over-confidence, and of a training accuracy far above the validation accuracy."""
    facts, ece, accuracy = examples.facts, scores.get("ece"), scores["accuracy"]
    if ece is not None and ece > _POORLY_CALIBRATED:
        sure = float(examples.confidence.mean())
        way = "over-confident" if sure > accuracy else "under-confident"
        text = f"The model is {way}: mean confidence {percent(sure)}, accuracy {percent(accuracy)}."
        yield "check", text, "calibration"
    elif ece is not None:
        yield "good", f"The model is well calibrated (ECE {ece:.3f}).", "calibration"
    train = [record["accuracy"] for record in facts.events("train")[-5:]]
    held_out = [r["accuracy"] for r in facts.events("evaluation") if r["split"] == "validation"]
    if train and held_out and (fitted := float(np.mean(train))) - held_out[-1] > _OVERFIT:
        text = f"Training accuracy was {percent(fitted)}, validation accuracy {percent(held_out[-1])}."
        yield "note", text, "learning"


def _command(facts: Facts) -> str:
    name, folds, by = facts.run.name, facts.folds, _held_out(facts)
    if not folds:
        return shlex.join(["tl-dist", "train", f"{name}.yaml"])
    options = ["--by", by] if by else ["--folds", str(folds["folds"]), "--seeds", str(folds["seeds"])]
    config = name.removesuffix(cross_validation.name_of("", by))
    return shlex.join(["tl-dist", "cv", f"{name}.yaml", f"name={config}", *options])


def _held_out(facts: Facts) -> str | None:
    """Return the value of `tl-dist cv --by`; None if the folds are random."""
    return next(iter((facts.folds or {}).get("left_out", ())), None)
