"""Sections on how far a run's predictions can be trusted: calibration, and robustness to corrupted images."""

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
    """Draw accuracy by confidence; if the run was calibrated, also at its temperature."""
    if not np.isfinite(examples.confidence).all():
        return None
    facts, predictions = examples.facts, examples.facts.predictions
    hits = examples.predicted == predictions.labels
    sure, right = float(examples.confidence.mean()), float(hits.mean())
    sentence = (
        f"Mean confidence is {percent(sure)}, accuracy {percent(right)}. A point below the diagonal is over-confident; "
        "its size shows its share of the images."
    )
    of = clusters.numbers(predictions.groups)
    confidences = {"Reliability: accuracy by confidence, with 95 % intervals": examples.confidence}
    fitted = calibration.load(facts.run.path)
    fits = fitted is not None and fitted.step == predictions.step and facts.split in ("test", "validation")
    if fitted is not None and fits and [*fitted.views] == [*facts.cfg.evaluation.views]:
        scaled = _at_temperature(predictions.probabilities, fitted.temperature)
        before, after = (figures.calibration_error(values, hits) for values in (examples.confidence, scaled))
        seen = "; it was fitted on this very split" if facts.split == "validation" else ""
        sentence += (
            f" Temperature {fitted.temperature:.3f} changes the ECE from {before:.3f} to {after:.3f}{seen}."
        )
        confidences[f"Calibrated: the same at temperature {fitted.temperature:.3f}"] = scaled
    bins = {caption: curves.reliability(values, hits, of) for caption, values in confidences.items()}
    pictures = [
        {
            "svg": charts.reliability(each, f"{caption.split(':')[0]} of {len(hits)} images"),
            "caption": caption,
        }
        for caption, each in bins.items()
    ]
    rows = [
        (
            f"{each.low:.2f} to {each.high:.2f}",
            f"{each.num_examples:,}",
            f"{each.confidence:.3f}",
            f"{each.accuracy:.3f}",
        )
        for each in next(iter(bins.values()))
    ]
    table = {"title": "As numbers", "names": ["confidence", "images", "mean", "accuracy"], "rows": rows}
    return {"sentence": sentence, "charts": pictures, "table": table}


def _at_temperature(probabilities: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Return the confidence of each example at a temperature."""
    confidence = np.empty(len(probabilities))
    for rows in figures.blocks(*probabilities.shape):
        # Logarithms of probabilities serve as logits: they differ by a constant, which softmax ignores.
        logs = np.log(np.maximum(probabilities[rows].astype(np.float64), np.finfo(np.float32).tiny))
        confidence[rows] = figures.softmax(logs / temperature).max(axis=1)
    return confidence


def robust(facts: Facts) -> dict[str, Any] | None:
    """Draw accuracy by severity and kind of corruption; None unless 'tl-dist eval --corruptions' was run."""
    hits = _hits(facts)
    if hits is None:
        return None
    record = robustness.record(hits)
    accuracy: Mapping[str, list[float]] = record["accuracy"]
    severities = [0, *record["severities"]]
    series = {}
    for category, names in CATEGORIES.items():
        kinds = [accuracy[name] for name in names if name in accuracy]
        if kinds:
            series[category] = (severities, [record["clean"], *np.mean(kinds, axis=0).tolist()])
    size = (
        f"Applied at the model's size, {record['image_size']} pixels, to {record['num_examples']:,} images."
    )
    error, clean = record["mean_corruption_error"], record["clean"]
    sentence = (
        f"Accuracy on the uncorrupted images: {percent(clean)}. {size}"
        if error is None
        else f"Corruptions raise its error from {percent(1 - clean)} to {percent(error)}, the mean over kinds and "
        f"severities without geometric ones. {size}"
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
    chart = {"svg": svg, "caption": "Mean accuracy by kind of corruption; severity 0 is the original image"}
    return {"sentence": sentence, "charts": [chart], "table": table}


def robust_compared(runs: Sequence[Facts]) -> dict[str, Any] | None:
    """Compare each run with the first on the same corrupted images; None if fewer than two were evaluated on them."""
    first, *others = [(facts.run.name, _hits(facts)) for facts in runs]
    rows, methods = [], set()
    for name, hits in others:
        if first[1] is None or hits is None:
            continue
        try:
            compared = robustness.compared(first[1], hits)
        except ValueError:  # other corruptions or severities: not comparable
            continue
        difference, interval = NOT_DEFINED, NOT_DEFINED
        if compared["difference"] is not None:
            low, high = compared["interval"]
            difference = f"{100 * compared['difference']:+.1f} points"
            interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
        mce = NOT_DEFINED if compared["mce"] is None else f"{compared['mce']:.3f}"
        rows.append((name, mce, difference, interval))
        methods.add(compared.get("interval_by", "paired bootstrap over images"))
    if not rows:
        return None
    sentence = (
        f"Errors on the same corrupted images, relative to the errors of “{first[0]}”, not of AlexNet. A ratio below "
        f"1, or a difference below 0, means more robust. Intervals: {', '.join(sorted(methods))}, 95 %."
    )
    names = ["run", "relative mean corruption error", "difference of the mean error", "95 % interval"]
    return {"parts": [{"title": "", "sentence": sentence, "names": names, "rows": rows}]}


def _hits(facts: Facts) -> Hits | None:
    path = robustness.file_of(facts.run.path, facts.split)
    return robustness.load(path) if path.exists() else None
