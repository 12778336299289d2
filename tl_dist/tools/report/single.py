"""Report on one run: choose the sections and write their sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tl_dist.scores import curves
from tl_dist.tools.report import charts, technical, trust
from tl_dist.tools.report.duplicates import MAX_SHOWN, Twin
from tl_dist.tools.report.examples import MAX_SUSPECTS, Cards, Examples, class_tables, confusions
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
    sections = [
        Section("verdict", "Verdict", "verdict", verdict(examples, tables=tables, twins=twins, notes=notes)),
        Section("errors", "Errors", "errors", confusions(examples, len(examples.images))),
        Section("classes", "Classes", "classes", {"tables": tables}),
        Section("worst", "Worst errors", "tiles", worst),
        Section("labels", "Labels", "tiles", labels),
        Section("duplicates", "Duplicates", "duplicates", _duplicates(twins, examples.images)),
        Section("calibration", "Calibration", "charts", trust.calibrated(examples)),
        Section("thresholds", "Thresholds", "charts", _thresholds(examples)),
        Section("robustness", "Robustness", "charts", trust.robust(facts)),
        Section("learning", "Learning curves", "charts", technical.learning(facts)),
        Section("speed", "Speed", "charts", technical.speed(facts)),
        Section("environment", "Environment", "facts", technical.environment(facts)),
    ]
    return render(facts.run.name, f"Report of a run, {facts.subject}", sections, cards.for_script())


def _worst(examples: Examples, cards: Cards) -> dict[str, Any] | None:
    predictions = examples.facts.predictions
    mapped = [k for k in examples.errors.tolist() if str(predictions.ids[k]) in examples.heat]
    if not mapped:
        return None
    sentence = (
        f"The {len(mapped)} most confident errors, each beside a heat map of the evidence for the predicted class "
        "(LayerCAM). Heat on the background, a caption or a border suggests that the model learned something other "
        "than the object."
    )
    return {"sentence": sentence, "note": "", "tiles": cards.tiles(predictions, mapped), "wide": True}


def _labels(examples: Examples, cards: Cards) -> dict[str, Any]:
    suspects, checked, names = examples.suspects, examples.suspects_of, examples.facts.class_names
    where = (
        "all examples, each predicted by a model that has not seen it"
        if examples.facts.out_of_fold is not None
        else f"the {examples.facts.split} split, which the model has not seen; 'tl-dist cv' would check all examples"
    )
    num, rows = len(suspects.examples), suspects.examples[:MAX_SUSPECTS].tolist()
    sentence = (
        f"Confident learning (Northcutt et al., 2021) flags {num:,} of {len(checked.labels):,} labels as likely wrong, "
        f"in {where}. The most suspicious come first; look at the image before you change a label."
    )
    # Without heat maps: two pictures would be tiny in these tiles.
    tiles = [
        tile | {"more": f"more likely {names[likely]}", "heat": None}
        for k, likely in zip(rows, suspects.likely.tolist(), strict=False)
        for tile in cards.tiles(checked, [k])
    ]
    ids = ", ".join(str(checked.ids[k]) for k in rows)
    note = "" if tiles or not num else f"Their images could not be read: {ids}"
    return {"sentence": sentence, "note": note, "tiles": tiles, "wide": False}


def _duplicates(twins: Sequence[Twin] | None, images: Mapping[str, str]) -> dict[str, Any] | None:
    if twins is None:
        return None
    if not twins:
        return {"sentence": "No two images in different splits are equal or nearly equal.", "groups": []}
    shown = twins[:MAX_SHOWN]
    sentence = (
        f"{len(twins):,} pairs of equal or nearly equal images are in different splits. What a model learns from one "
        "helps it with the other, so the figures are too good."
    )
    if len(shown) < len(twins):
        sentence += f" Here are the first {len(shown)}:"
    groups = [
        {
            "kind": "equal" if twin.equal else "nearly equal",
            "images": [place._asdict() | {"image": images.get(place.id)} for place in twin.pair],
        }
        for twin in shown
    ]
    return {"sentence": sentence, "groups": groups}


def _thresholds(examples: Examples) -> dict[str, Any] | None:
    """Draw ROC and precision-recall curves: of the second class of two, else of each class against the rest."""
    predictions, names = examples.facts.predictions, examples.facts.class_names
    labels, probabilities = predictions.labels, predictions.probabilities
    counts = np.bincount(labels, minlength=len(names))
    possible = [k for k in range(len(names)) if 0 < counts[k] < len(labels)]
    if len(names) == 2:
        possible = possible[1:]
    if not possible or not np.isfinite(probabilities).all():
        return None
    both = {
        k: (
            curves.roc(labels == k, probabilities[:, k]),
            curves.precision_recall(labels == k, probabilities[:, k]),
        )
        for k in possible[:200]
    }
    worst = sorted(both, key=lambda k: both[k][1].area)[: charts.MAX_SERIES]
    shown = [k for k in both if k in worst]
    of = f"“{names[shown[0]]}”" if len(names) == 2 else "each class against the rest"
    sentence = f"The trade-off at other thresholds: {of}."
    if len(shown) < len(possible):
        sentence += f" Shown are the {len(shown)} classes with the lowest average precision."
    roc = {names[k]: both[k][0] for k in shown}
    precision = {names[k]: both[k][1] for k in shown}
    pictures = [
        charts.curves(
            roc, x="false positive rate", y="true positive rate", area="AUC", what="ROC curves", diagonal=True
        ),
        charts.curves(
            precision, x="recall", y="precision", area="AP", what="Precision-recall curves", diagonal=False
        ),
    ]
    captions = ["ROC: area under the curve (AUC)", "Precision and recall: average precision (AP)"]
    if len(shown) == 1:  # a single curve has no legend that could hold the area
        areas = [curve.area for curve in both[shown[0]]]
        captions = [f"{text} {area:.3f}" for text, area in zip(captions, areas, strict=True)]
    drawn = [{"svg": svg, "caption": text} for svg, text in zip(pictures, captions, strict=True)]
    return {"sentence": sentence, "charts": drawn, "table": None}
