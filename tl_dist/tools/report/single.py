"""Report on one run: choose the sections, and fill those without charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tl_dist.tools.report import charted
from tl_dist.tools.report.examples import MAX_SUSPECTS, Cards, Examples, class_tables, confusions
from tl_dist.tools.report.images import MAX_TWINS, Twin
from tl_dist.tools.report.page import Section, render
from tl_dist.tools.report.verdict import verdict


def page(examples: Examples, *, twins: Sequence[Twin] | None, notes: Sequence[str]) -> bytes:
    """Render the page of a run. `twins` are near duplicates across splits; None if they were not searched for."""
    facts, cards = examples.facts, Cards(examples)
    tables = class_tables(examples)
    # Both add cards, so they come before `for_script`.
    mapped = [k for k in examples.errors.tolist() if str(facts.predictions.ids[k]) in examples.heat]
    worst, labels = cards.tiles(facts.predictions, mapped), _labels(examples, cards)
    duplicates = None if twins is None else {"twins": twins, "shown": MAX_TWINS, "images": examples.images}
    # A run that merges folds, each of them a run of its own, was not trained itself.
    norms = [_batch_norm(audit) for audit in facts.events("batch_norm")[-1:]]
    environment = {"facts": facts, "parts": norms} if facts.attempts or facts.records else None
    sections = [
        Section("verdict", "Verdict", "verdict", verdict(examples, tables, twins, notes)),
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
        Section("environment", "Environment", "environment", environment),
    ]
    return render(facts.run.name, f"Report of a run, {facts.subject}", sections, cards.for_script())


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
