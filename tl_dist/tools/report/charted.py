"""Sections with charts: calibration, thresholds, robustness to corrupted images, learning curves, and speed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tl_dist.data.corruptions import CATEGORIES
from tl_dist.refusal import shortened
from tl_dist.scores import calibration, clusters, curves, figures, robustness
from tl_dist.scores.robustness import Hits
from tl_dist.scores.text import FIGURES, figure, span
from tl_dist.tools.report import charts
from tl_dist.tools.report.examples import Examples
from tl_dist.tools.report.facts import Facts

_Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, names and rows
_MAX_POINTS = 300
_MAX_CURVES = 200
_TRADE_OFFS = (
    ("ROC curves", "false positive rate", "true positive rate", "AUC", "ROC: area under the curve (AUC)"),
    ("Precision-recall curves", "recall", "precision", "AP", "Precision and recall: average precision (AP)"),
)


def _charted(pictures: Mapping[str, str], table: _Table | None = None, **facts: Any) -> dict[str, Any]:
    """Return the content of a section: charts by caption, a table that is folded away, and facts for its text."""
    return {"charts": pictures, "table": table, **facts}


def calibrated(examples: Examples) -> dict[str, Any] | None:
    """Draw accuracy by confidence; if the run was calibrated, also at its temperature."""
    if not np.isfinite(examples.confidence).all():
        return None
    facts, predictions = examples.facts, examples.facts.predictions
    hits = examples.predicted == predictions.labels
    effect = None
    confidences = {"Reliability: accuracy by confidence, with 95 % intervals": examples.confidence}
    fitted = calibration.load(facts.run.path)
    fits = fitted is not None and fitted.step == predictions.step and facts.split in ("test", "validation")
    if fitted is not None and fits and [*fitted.views] == [*facts.cfg.evaluation.views]:
        # Logarithms of probabilities serve as logits: they differ by a constant, which softmax ignores.
        logits = np.log(np.maximum(predictions.probabilities, np.finfo(np.float32).tiny))
        softmax = figures.Softmax(logits, fitted.temperature)
        scaled = figures.confidences(predictions.labels, softmax).confidence
        effect = [figures.calibration_error(values, hits) for values in (examples.confidence, scaled)]
        confidences[f"Calibrated: the same at temperature {fitted.temperature:.3f}"] = scaled
    of = clusters.numbers(predictions.groups)
    bins = {caption: curves.reliability(values, hits, of) for caption, values in confidences.items()}
    pictures = {
        caption: charts.reliability(each, f"{caption.split(':')[0]} of {len(hits)} images")
        for caption, each in bins.items()
    }
    rows = [
        (span((low, high), ".2f"), f"{num:,}", figure(confidence), figure(accuracy))
        for low, high, num, confidence, accuracy, _ in next(iter(bins.values()))
    ]
    table = ("As numbers", ("confidence", "images", "mean", "accuracy"), rows)
    return _charted(pictures, table, examples=examples, accuracy=float(hits.mean()), fitted=fitted, effect=effect)


def thresholds(examples: Examples) -> dict[str, Any] | None:
    """Draw ROC and precision-recall curves: of the second class of two, else of each class against the rest."""
    predictions, names = examples.facts.predictions, examples.facts.class_names
    labels, probabilities = predictions.labels, predictions.probabilities
    possible = np.flatnonzero((examples.counts > 0) & (examples.counts < len(labels))).tolist()
    if len(names) == 2:
        possible = possible[1:]
    if not possible or not np.isfinite(probabilities).all():
        return None
    both = {
        k: [curve(labels == k, probabilities[:, k]) for curve in (curves.roc, curves.precision_recall)]
        for k in possible[:_MAX_CURVES]
    }
    worst = sorted(both, key=lambda k: both[k][1].area)[: charts.MAX_SERIES]
    shown = [k for k in both if k in worst]
    pictures = {}
    for which, (what, x, y, area, caption) in enumerate(_TRADE_OFFS):
        drawn = {k: both[k][which] for k in shown}
        series = {
            f"{shortened(names[k], 16)}: {area} {curve.area:.3f}": (curve.x.tolist(), curve.y.tolist())
            for k, curve in drawn.items()
        }
        if len(shown) == 1:  # a single curve has no legend that could hold the area
            caption = f"{caption} {drawn[shown[0]].area:.3f}"
        pictures[caption] = charts.lines(series, x=x, y=y, what=what, diagonal=which == 0)
    of = names[shown[0]] if len(names) == 2 else None
    return _charted(pictures, of=of, num_shown=len(shown), num_classes=len(possible))


def hits_of(facts: Facts) -> Hits | None:
    """Return what 'tl-dist eval --corruptions' has kept for the split, if it was run."""
    path = robustness.file_of(facts.run.path, facts.split)
    return robustness.load(path) if path.exists() else None


def robust(facts: Facts) -> dict[str, Any] | None:
    """Draw accuracy by severity and kind of corruption; None unless 'tl-dist eval --corruptions' was run."""
    hits = hits_of(facts)
    if hits is None:
        return None
    record = robustness.record(hits)
    accuracy: Mapping[str, list[float]] = record["accuracy"]
    series = {}
    for category, names in CATEGORIES.items():
        kinds = [accuracy[name] for name in names if name in accuracy]
        if kinds:
            series[category] = (
                [0, *record["severities"]],
                [record["clean"], *np.mean(kinds, axis=0).tolist()],
            )
    what = "Accuracy by severity of corruption"
    svg = charts.lines(series, x="severity", y="accuracy", what=what, percent=True)
    rows = [(name, *map(figure, values)) for name, values in accuracy.items()]
    table = ("Each corruption", ("corruption", *map(str, record["severities"])), rows)
    caption = "Mean accuracy by kind of corruption; severity 0 is the original image"
    return _charted({caption: svg}, table, record=record, not_published=robustness.NOT_PUBLISHED)


def learning(runs: Sequence[Facts]) -> dict[str, Any] | None:
    """Draw loss and accuracy of training and of held-out splits by epoch; None if nothing was trained in steps.

    A single run has a table of its evaluations, too.
    """
    pictures = {}
    recorded = [record.get("figures", {}) for facts in runs for record in facts.events("evaluation")]
    main = next((figures["main"] for figures in recorded if "main" in figures), "accuracy")
    for key in ("loss", main):
        series = curves_of(runs, key)
        if any(xs for xs, _ in series.values()):
            what = f"Learning curves: {key}"
            name = FIGURES.get(key, key.capitalize())
            pictures[name] = charts.lines(series, x="epoch", y=name, what=what, percent=key == "accuracy")
    if len(runs) > 1 or not pictures:
        return _charted(pictures) if pictures else None
    rows = [
        (f"{record['step']:,}", record["split"], figure(_value(record, main), 4), f"{record['loss']:.4f}")
        for record in runs[0].events("evaluation")
    ]
    names = ("step", "split", FIGURES.get(main, main), "loss")
    return _charted(pictures, ("Evaluations", names, rows) if rows else None)


def curves_of(runs: Sequence[Facts], key: str) -> dict[str, tuple[list[float], list[float]]]:
    """Return `key` of the records by epoch: one curve for training and one per held-out split, or one curve per run.

    With several runs, a run's curve shows the split it was evaluated on most often. A run without evaluations has an
    empty curve, so that the curves after it keep the colours of their runs.
    """
    series: dict[str, tuple[list[float], list[float]]] = {}
    for facts in runs:
        train = facts.events("train")
        if train and len(runs) == 1:
            shown = _thinned(train)
            if _value(shown[-1], key) is not None:
                series["train"] = ([record["epoch"] for record in shown], [record[key] for record in shown])
        epochs = {record["step"]: record["epoch"] for record in train}
        last = max(epochs, default=0)
        held_out: dict[str, tuple[list[float], list[float]]] = {}
        for record in facts.events("evaluation") if last else ():
            if (value := _value(record, key)) is None:
                continue
            xs, ys = held_out.setdefault(record["split"], ([], []))
            xs.append(epochs.get(record["step"], record["step"] * epochs[last] / last))
            ys.append(value)
        if len(runs) > 1:
            split = max(held_out, key=lambda name: len(held_out[name][0]), default="")
            name = f"{facts.run.name}, {split}" if split else facts.run.name
            held_out = {name: held_out.get(split, ([], []))}
        series |= held_out
    return series


def _value(record: Mapping[str, Any], key: str) -> float | None:
    """Return a figure of a record, of an evaluation also one of its `figures`; None if it has none."""
    value = record.get(key, record.get("figures", {}).get(key))
    return value if isinstance(value, int | float) else None


def _thinned(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep at most _MAX_POINTS records, evenly spaced, with the last."""
    if len(records) <= _MAX_POINTS:
        return records
    return [records[k] for k in np.linspace(0, len(records) - 1, _MAX_POINTS).round().astype(int)]


def speed(facts: Facts) -> dict[str, Any] | None:
    """Show how a step's time divides into computing, waiting for data, and reducing over the workers."""
    timed = {"data_wait_share", "reduction_share", "step_s", "examples_per_s"}
    # The first record includes compiling.
    warm = [record for record in facts.events("train")[1:] if record.keys() >= timed]
    if not warm:
        return None
    shown = _thinned(warm)
    wait = np.array([record["data_wait_share"] for record in shown])
    reduction = np.array([record["reduction_share"] for record in shown])
    parts = {
        "computing": np.clip(1 - wait - reduction, 0, 1),
        "waiting for data": wait,
        "reducing over workers": reduction,
    }
    svg = charts.shares(parts, [record["step"] for record in shown], "Parts of a step's time")
    medians = {key: float(np.median([record[key] for record in warm])) for key in ("step_s", "examples_per_s")}
    shares = {name: float(values.mean()) for name, values in parts.items()}
    return _charted({"Where the time of a step goes": svg}, shares=shares, medians=medians)
