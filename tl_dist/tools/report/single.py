"""Report on one run: choose the sections, and fill those without charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tl_dist.tools.report import charted
from tl_dist.tools.report.examples import MAX_SUSPECTS, Cards, Examples, class_tables, confusions
from tl_dist.tools.report.facts import Facts
from tl_dist.tools.report.images import MAX_TWINS, Twin
from tl_dist.tools.report.page import Section, render
from tl_dist.tools.report.verdict import verdict


def page(
    examples: Examples, *, groups: Sequence[str] | None, twins: Sequence[Twin] | None, notes: Sequence[str]
) -> bytes:
    """Render the page of a run. `twins` are near duplicates across splits; None if they were not searched for."""
    facts, cards = examples.facts, Cards(examples)
    tables = class_tables(examples, groups)
    # Both add cards, so they come before `for_script`.
    worst, labels = _worst(examples, cards), _labels(examples, cards)
    duplicates = None if twins is None else {"twins": twins, "shown": MAX_TWINS, "images": examples.images}
    sections = [
        Section("verdict", "Verdict", "verdict", verdict(examples, tables, twins, notes)),
        Section("errors", "Errors", "errors", confusions(examples)),
        Section("classes", "Classes", "classes", {"tables": tables}),
        Section("worst", "Worst errors", "tiles", worst),
        Section("labels", "Labels", "tiles", labels),
        Section("duplicates", "Duplicates", "duplicates", duplicates),
        Section("calibration", "Calibration", "charts", charted.calibrated(examples)),
        Section("thresholds", "Thresholds", "charts", charted.thresholds(examples)),
        Section("robustness", "Robustness", "charts", charted.robust(facts)),
        Section("learning", "Learning curves", "charts", charted.learning([facts])),
        Section("speed", "Speed", "charts", charted.speed(facts)),
        Section("environment", "Environment", "facts", _environment(facts)),
    ]
    return render(facts.run.name, f"Report of a run, {facts.subject}", sections, cards.for_script())


def _worst(examples: Examples, cards: Cards) -> dict[str, Any] | None:
    predictions = examples.facts.predictions
    mapped = [k for k in examples.errors.tolist() if str(predictions.ids[k]) in examples.heat]
    sentence = (
        f"The {len(mapped)} most confident errors, each beside a heat map of the evidence for the predicted class "
        "(LayerCAM). Heat on the background, a caption or a border suggests that the model learned something other "
        "than the object."
    )
    tiles = cards.tiles(predictions, mapped)
    return {"sentence": sentence, "note": "", "tiles": tiles, "wide": True} if mapped else None


def _labels(examples: Examples, cards: Cards) -> dict[str, Any]:
    suspects, checked, facts = examples.suspects, examples.suspects_of, examples.facts
    where = (
        "all examples, each predicted by a model that has not seen it"
        if facts.out_of_fold is not None
        else f"the {facts.split} split, which the model has not seen; 'tl-dist cv' would check all examples"
    )
    num, rows = len(suspects.examples), suspects.examples[:MAX_SUSPECTS].tolist()
    sentence = (
        f"Confident learning (Northcutt et al., 2021) flags {num:,} of {len(checked.labels):,} labels as likely wrong, "
        f"in {where}. The most suspicious come first; look at the image before you change a label."
    )
    # Without heat maps: two pictures would be tiny in these tiles.
    tiles = [
        tile | {"more": f"more likely {facts.class_names[likely]}", "heat": None}
        for k, likely in zip(rows, suspects.likely.tolist(), strict=False)
        for tile in cards.tiles(checked, [k])
    ]
    ids = ", ".join(str(checked.ids[k]) for k in rows)
    note = "" if tiles or not num else f"Their images could not be read: {ids}"
    return {"sentence": sentence, "note": note, "tiles": tiles, "wide": False}


def _environment(facts: Facts) -> dict[str, Any] | None:
    """List workers, versions, data and batch norm: what a reproduction would need to match.

    None if nothing is recorded: a run that merges folds, each of them a run of its own, was not trained itself.
    """
    if not facts.attempts and not facts.records:
        return None
    cfg, identity = facts.cfg, facts.identity
    hosts = dict.fromkeys(str(attempt["host"]) for attempt in facts.attempts if "host" in attempt)
    rows = [
        ("strategy", cfg.strategy),
        ("workers", str(facts.workers or "unknown")),
        ("hosts", ", ".join(hosts) or "unknown"),
        ("attempts", f"{len(facts.attempts):,}"),
        ("training time", facts.duration or "unknown"),
        ("precision", str(identity.get("precision", "unknown"))),
        *((name, number) for name, number in facts.versions.items() if name != "code"),
        *((f"data, {split}", str(digest)[:16]) for split, digest in identity.get("data", {}).items()),
    ]
    if identity.get("weights_sha256"):
        rows.append(("pretrained weights", f"{cfg.model.weights}, sha256 {identity['weights_sha256'][:16]}"))
    return {"parts": [("", "", (), rows), *(_batch_norm(audit) for audit in facts.events("batch_norm")[-1:])]}


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
