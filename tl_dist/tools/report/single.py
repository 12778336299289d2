"""The report of one run: which sections it has, and what each says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tl_dist.scores import curves
from tl_dist.tools.report import charts, technical, trust
from tl_dist.tools.report.duplicates import Twin
from tl_dist.tools.report.examples import (
    MAX_SUSPECTS,
    Cards,
    Examples,
    class_tables,
    confusions,
)
from tl_dist.tools.report.page import Section, render
from tl_dist.tools.report.verdict import verdict

_MAX_CURVES = charts.MAX_SERIES


def page(
    examples: Examples, *, groups: Sequence[str] | None, twins: Sequence[Twin] | None, notes: Sequence[str]
) -> bytes:
    """The page of a run. `twins` are near duplicates across splits, None where none were looked for."""
    facts, cards = examples.facts, Cards(examples)
    tables = class_tables(examples, groups)
    worst, labels = _worst(examples, cards), _labels(examples, cards)  # which makes cards of its own
    sections = [
        Section("verdict", "Verdict", "verdict", verdict(examples, tables=tables, twins=twins, notes=notes)),
        Section("errors", "Where it is wrong", "errors", confusions(examples, len(examples.images))),
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
    wanted = [k for k in examples.errors.tolist() if str(examples.facts.said.ids[k]) in examples.heat]
    if not wanted:
        return None
    sentence = (
        f"The {len(wanted)} errors that it was most sure of, each beside a map of what speaks for the class that was "
        "predicted (LayerCAM). A map on the background, a label or a border says that it learned something else than "
        "the object."
    )
    return {"sentence": sentence, "note": "", "tiles": cards.tiles(examples.facts.said, wanted), "wide": True}


def _labels(examples: Examples, cards: Cards) -> dict[str, Any]:
    found, said, names = examples.suspects, examples.suspects_of, examples.facts.class_names
    where = (
        "every example, each predicted by a model that has not seen it"
        if examples.facts.out_of_fold is not None
        else f"the {examples.facts.split} split, which the model has not seen; 'tl-dist cv' would look at all examples"
    )
    num = len(found.examples)
    sentence = (
        f"Confident learning (Northcutt et al., 2021) names {num:,} of {len(said.labels):,} labels that are likely "
        f"wrong, in {where}. The most suspicious come first: look before you change one."
    )
    pairs = zip(found.examples[:MAX_SUSPECTS].tolist(), found.likely.tolist(), strict=False)
    tiles = [
        tile | {"more": f"more likely {names[likely]}", "heat": None}  # beside it both would be tiny
        for k, likely in pairs
        for tile in cards.tiles(said, [k])
    ]
    ids = [str(said.ids[k]) for k in found.examples[:MAX_SUSPECTS].tolist()]
    note = "" if tiles or not num else f"Their pictures could not be read: {', '.join(ids)}"
    return {"sentence": sentence, "note": note, "tiles": tiles, "wide": False}


def _duplicates(twins: Sequence[Twin] | None, images: Mapping[str, str]) -> dict[str, Any] | None:
    if twins is None:
        return None
    if not twins:
        return {"sentence": "No image of one split is in another as well, nor nearly so.", "groups": []}
    shown = twins[:24]
    sentence = (
        f"{len(twins):,} pairs of equal or nearly equal images lie in different splits: what training knows of one "
        "helps with the other, and figures come out too good."
    )
    if len(shown) < len(twins):
        sentence += f" The first {len(shown)}:"
    groups = [
        {
            "kind": "equal" if twin.equal else "nearly equal",
            "images": [one._asdict() | {"image": images.get(one.id)} for one in twin.pair],
        }
        for twin in shown
    ]
    return {"sentence": sentence, "groups": groups}


def _thresholds(examples: Examples) -> dict[str, Any] | None:
    """ROC and precision-recall: of the second class of two, else of each class against the rest."""
    said, names = examples.facts.said, examples.facts.class_names
    counts = np.bincount(said.labels, minlength=len(names))
    possible = [k for k in range(len(names)) if 0 < counts[k] < len(said.labels)]
    if len(names) == 2:
        possible = possible[1:]
    if not possible or not np.isfinite(said.probabilities).all():
        return None
    found = {
        k: (
            curves.roc(said.labels == k, said.probabilities[:, k]),
            curves.precision_recall(said.labels == k, said.probabilities[:, k]),
        )
        for k in possible[:200]
    }
    worst = sorted(found, key=lambda k: found[k][1].area)[:_MAX_CURVES]
    chosen = [k for k in found if k in worst]
    of = f"“{names[chosen[0]]}”" if len(names) == 2 else "each class against the rest"
    sentence = f"What another threshold would give: {of}."
    if len(chosen) < len(possible):
        sentence += f" Shown are the {len(chosen)} classes of the least average precision."
    roc = {names[k]: found[k][0] for k in chosen}
    precision = {names[k]: found[k][1] for k in chosen}
    made = [
        charts.curves(
            roc,
            x="false positive rate",
            y="true positive rate",
            area="AUC",
            what="ROC curves",
            diagonal=True,
        ),
        charts.curves(
            precision, x="recall", y="precision", area="AP", what="Precision-recall curves", diagonal=False
        ),
    ]
    captions = ["ROC: area under the curve (AUC)", "Precision and recall: average precision (AP)"]
    if len(chosen) == 1:  # which has no legend
        areas = [found[chosen[0]][k].area for k in (0, 1)]
        captions = [f"{text} {area:.3f}" for text, area in zip(captions, areas, strict=True)]
    both = [{"svg": svg, "caption": text} for svg, text in zip(made, captions, strict=True)]
    return {"sentence": sentence, "charts": both, "table": None}
