"""Sections on what a run's figures are worth: calibration, and robustness against corrupted images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.data.corruptions import CATEGORIES
from tl_dist.scores import calibration, clusters, curves, figures, robustness
from tl_dist.scores.robustness import Hits
from tl_dist.tools.report import charts
from tl_dist.tools.report.examples import Examples
from tl_dist.tools.report.facts import Facts
from tl_dist.tools.report.page import NOT_DEFINED, percent


def calibrated(examples: Examples) -> dict[str, Any] | None:
    """Accuracy by confidence; beside it the same at the temperature of the run, where it was calibrated."""
    if not np.isfinite(examples.confidence).all():
        return None
    facts, hits = examples.facts, examples.predicted == examples.facts.said.labels
    sure, right = float(examples.confidence.mean()), float(hits.mean())
    sentence = (
        f"It is {100 * sure:.1f} % sure in the mean, and right in {100 * right:.1f} %. A point below the diagonal is "
        "over-confident; its size is the share of the images."
    )
    of = clusters.numbers(facts.said.groups)
    confidences = {"Reliability: accuracy by confidence, with 95 % intervals": examples.confidence}
    found = calibration.load(facts.run.path)
    fits = found is not None and found.step == facts.said.step and facts.split in ("test", "validation")
    if found is not None and fits and [*found.views] == [*facts.cfg.evaluation.views]:
        after = _at_temperature(facts.said.probabilities, found.temperature)
        before, then = (figures.calibration_error(one, hits) for one in (examples.confidence, after))
        seen = "; it was fitted on this very split" if facts.split == "validation" else ""
        sentence += (
            f" Temperature {found.temperature:.3f} changes the ECE from {before:.3f} to {then:.3f}{seen}."
        )
        confidences[f"Calibrated: the same at temperature {found.temperature:.3f}"] = after
    bins = {caption: curves.reliability(values, hits, of) for caption, values in confidences.items()}
    made = [
        {"svg": charts.reliability(one, f"{caption.split(':')[0]} of {len(hits)} images"), "caption": caption}
        for caption, one in bins.items()
    ]
    rows = [
        (
            f"{one.low:.2f} to {one.high:.2f}",
            f"{one.num_examples:,}",
            f"{one.confidence:.3f}",
            f"{one.accuracy:.3f}",
        )
        for one in next(iter(bins.values()))
    ]
    table = {"title": "In figures", "names": ["confidence", "images", "mean", "right"], "rows": rows}
    return {"sentence": sentence, "charts": made, "table": table}


def _at_temperature(probabilities: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """The confidence of each example: the softmax of logits is that of logarithms of probabilities."""
    confidence = np.empty(len(probabilities))
    for rows in figures.blocks(*probabilities.shape):
        logs = np.log(np.maximum(probabilities[rows].astype(np.float64), np.finfo(np.float32).tiny))
        confidence[rows] = figures.softmax(logs / temperature).max(axis=1)
    return confidence


def robust(facts: Facts) -> dict[str, Any] | None:
    """Accuracy against severity by kind of corruption; None where 'tl-dist eval --corruptions' did not run."""
    found = _hits(facts)
    if found is None:
        return None
    record = robustness.record(found)
    accuracy: Mapping[str, list[float]] = record["accuracy"]
    severities = [0, *record["severities"]]
    series = {}
    for category, names in CATEGORIES.items():
        kinds = [accuracy[name] for name in names if name in accuracy]
        if kinds:
            series[category] = (severities, [record["clean"], *np.mean(kinds, axis=0).tolist()])
    at = f"Applied at the model's size, {record['image_size']} pixels, to {record['num_examples']:,} images."
    error, clean = record["mean_corruption_error"], record["clean"]
    sentence = (
        f"Right in {percent(clean)} of the images as they are. {at}"
        if error is None
        else f"Corruptions raise its error from {percent(1 - clean)} to {percent(error)} in the mean of kinds and "
        f"severities, changes of place apart. {at}"
    )
    if record["mce_alexnet"] is not None:
        sentence += (
            f" mCE {record['mce_alexnet']:.3f}, normalized by AlexNet's errors; {robustness.NOT_PUBLISHED}."
        )
    svg = charts.lines(
        series, x="severity", y="accuracy", what="Accuracy by severity of corruption", percent=True
    )
    rows = [(name, *(f"{value:.3f}" for value in values)) for name, values in accuracy.items()]
    table = {
        "title": "Each corruption",
        "names": ["corruption", *map(str, record["severities"])],
        "rows": rows,
    }
    chart = {"svg": svg, "caption": "Mean accuracy by kind of corruption; severity 0 is the image as it is"}
    return {"sentence": sentence, "charts": [chart], "table": table}


def robust_compared(runs: Sequence[Facts]) -> dict[str, Any] | None:
    """Each run against the first on the same corrupted images; None where fewer than two were evaluated on them."""
    first, *others = [(facts.run.name, _hits(facts)) for facts in runs]
    rows, methods = [], set()
    for name, hits in others:
        if first[1] is None or hits is None:
            continue
        try:
            found = robustness.compared(first[1], hits)
        except ValueError:  # other corruptions or severities: not comparable
            continue
        apart, between = NOT_DEFINED, NOT_DEFINED
        if found["difference"] is not None:
            low, high = found["interval"]
            apart, between = (
                f"{100 * found['difference']:+.1f} points",
                f"{100 * low:+.1f} to {100 * high:+.1f}",
            )
        rows.append((name, NOT_DEFINED if found["mce"] is None else f"{found['mce']:.3f}", apart, between))
        methods.add(found.get("interval_by", "paired bootstrap over images"))
    if not rows:
        return None
    sentence = (
        f"Errors on the same corrupted images, relative to those of “{first[0]}”, not of AlexNet: below 1, or below 0 "
        f"points, a run is more robust. Intervals: {', '.join(sorted(methods))}, 95 %."
    )
    names = ["run", "mean corruption error, relative", "difference of the mean error", "95 % interval"]
    return {"parts": [{"title": "", "sentence": sentence, "names": names, "rows": rows}]}


def _hits(facts: Facts) -> Hits | None:
    path = robustness.file_of(facts.run.path, facts.split)
    return robustness.load(path) if path.exists() else None
