"""Report on a run whose images have numbers, or any number of labels: figures, charts, and the worst answers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist import tasks
from tl_dist.datasets import in_words
from tl_dist.refusal import shortened
from tl_dist.scores import clusters, curves
from tl_dist.scores.text import FIGURES, figure
from tl_dist.tools.report import charted, charts, single
from tl_dist.tools.report.examples import Row, Table
from tl_dist.tools.report.facts import Facts
from tl_dist.tools.report.images import MAX_TWINS, Twin
from tl_dist.tools.report.page import Section, card, render

WORST = 48  # images shown
_MAX_POINTS = 1_000
_MAX_TARGETS = 4  # whose residuals are drawn


def worst(facts: Facts) -> NDArray[np.int64]:
    """Return the examples with the largest errors, of numbers in standard deviations of each target."""
    truth, answers = facts.predictions.truth, facts.predictions.probabilities
    errors = np.abs(truth - answers)
    if not tasks.gives_labels(facts.cfg):
        errors /= np.maximum(truth.std(axis=0), 1e-12)
    return np.argsort(-errors.mean(axis=1), kind="stable")[:WORST]


def page(facts: Facts, pictures: Mapping[str, str], twins: Sequence[Twin] | None, notes: Sequence[str]) -> bytes:
    """Render the page of a run; `pictures` are `data:` addresses by id."""
    predictions, of_labels = facts.predictions, tasks.gives_labels(facts.cfg)
    scores = tasks.of(facts.cfg).figures(predictions.truth, predictions.probabilities, predictions.groups)
    cards = list(_cards(facts, pictures))
    verdict = {
        "facts": facts,
        "scores": scores,
        "names": FIGURES,
        "of": None if (of := clusters.numbers(predictions.groups)) is None else clusters.words(of),
        "findings": list(_findings(facts, scores, twins, notes)),
        **single.how_trained(facts),
    }
    duplicates = None if twins is None else {"twins": twins, "shown": MAX_TWINS, "images": pictures}
    labels = {"tables": [_labels(facts, scores)]} if of_labels else None
    sections = [
        Section("verdict", "Verdict", "verdict_of_targets", verdict),
        Section("targets", "Residuals", "charts", None if of_labels else _residuals(facts, scores)),
        Section("classes", "Labels", "classes", labels),
        Section("thresholds", "Thresholds", "charts", _trade_offs(facts) if of_labels else None),
        Section("worst", "Largest errors", "worst_of_targets", {"tiles": cards} if cards else None),
        Section("duplicates", "Duplicates", "duplicates", duplicates),
        Section("learning", "Learning curves", "charts", charted.learning([facts])),
        Section("speed", "Speed", "speed", charted.speed(facts)),
        Section("environment", "Environment", "environment", single.environment(facts)),
    ]
    numbers = list(range(len(cards)))
    orders = {"errors": numbers, "doubtful": numbers, "all": numbers}
    data = {"class_names": facts.class_names, "examples": cards, "orders": orders}
    return render(facts.run.name, f"Report of a run, {facts.subject}", sections, data)


def _cards(facts: Facts, pictures: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the card, and the tile, of each of the worst examples that has a picture."""
    predictions, names, labels = facts.predictions, facts.class_names, tasks.gives_labels(facts.cfg)
    answers = predictions.probabilities >= 0.5 if labels else predictions.probabilities
    rows = [k for k in worst(facts).tolist() if str(predictions.ids[k]) in pictures]
    for number, k in enumerate(rows):
        truth, answer = (in_words(values[k], names, labels=labels) for values in (predictions.truth, answers))
        each = zip(names, predictions.truth[k], predictions.probabilities[k], strict=True)
        facts_of = [[name, f"{value:.4g}, answer {own:.4g}"] for name, value, own in each]
        name, right = str(predictions.ids[k]), not labels or truth == answer
        words = {"prediction": shortened(answer, 60), "label": f"truth: {shortened(truth, 60)}", "more": ""}
        yield card(name, pictures[name], facts_of, number=number, right=right, **words)


def _findings(
    facts: Facts, scores: Mapping[str, Any], twins: Sequence[Twin] | None, notes: Sequence[str]
) -> Iterator[single.Finding]:
    yield from single.known(facts, notes)
    if twins:
        text = f"{len(twins):,} pairs of equal or nearly equal images are in different splits"
        yield "check", f"{text}: the figures are too good.", "duplicates"
    elif twins is not None:
        yield "good", "No two images in different splits are equal or nearly equal.", ""
    for name, row in zip(facts.class_names, scores.get("targets", ()), strict=False):
        if row["r2"] is not None and row["r2"] <= 0:
            yield "check", f"“{name}” is estimated no better than by its mean (R2 {figure(row['r2'])}).", "targets"
    rows = zip(facts.class_names, scores.get("labels", ()), strict=False)
    known = [(row["average_precision"], name) for name, row in rows if row["average_precision"] is not None]
    if known:
        least, name = min(known)
        yield "note", f"The label with the lowest average precision is “{name}”: {figure(least)}.", "classes"


def _labels(facts: Facts, scores: Mapping[str, Any]) -> Table:
    rows = [
        Row(
            name,
            row["num_examples"],
            row["recall"],
            row["interval"],
            (row["precision"], row["f1"], row["average_precision"]),
        )
        for name, row in zip(facts.class_names, scores["labels"], strict=True)
    ]
    return Table("label", rows, len(rows), clusters.numbers(facts.predictions.groups))


def _trade_offs(facts: Facts) -> dict[str, Any] | None:
    """Draw precision by recall of the labels with the lowest average precision."""
    has, probabilities, names = facts.predictions.truth > 0.5, facts.predictions.probabilities, facts.class_names
    varied = np.flatnonzero(has.any(axis=0) & ~has.all(axis=0)).tolist()
    if not varied or not np.isfinite(probabilities).all():
        return None
    every = {k: curves.precision_recall(has[:, k], probabilities[:, k]) for k in varied}
    shown = sorted(every, key=lambda k: every[k].area)[: charts.MAX_SERIES]
    series = {
        f"{shortened(names[k], 16)}: AP {every[k].area:.3f}": (every[k].x.tolist(), every[k].y.tolist()) for k in shown
    }
    what = "Precision and recall of each label" + (": the lowest" if len(shown) < len(varied) else "")
    return {"charts": {what: charts.lines(series, x="recall", y="precision", what=what)}, "table": None}


def _residuals(facts: Facts, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Draw the answers, and how far they are off, against the truth."""
    truth, answers, names = facts.predictions.truth, facts.predictions.probabilities, facts.class_names
    chosen = np.linspace(0, len(truth) - 1, min(len(truth), _MAX_POINTS)).round().astype(int)
    pictures = {}
    for k, name in enumerate(names[:_MAX_TARGETS]):
        x, y = truth[chosen, k], answers[chosen, k]
        known, off = f"{name}: answer by truth; on the line they are equal", f"{name}: answer less truth, by truth"
        pictures[known] = charts.points(x, y, x="truth", y="answer", what=known, diagonal=True)
        pictures[off] = charts.points(x, y - x, x="truth", y="answer less truth", what=off)
    rows = [(name, *map(figure, row.values())) for name, row in zip(names, scores["targets"], strict=True)]
    heads = ("target", *(FIGURES[key] for key in scores["targets"][0]))
    return {"charts": pictures, "table": ("Each target", heads, rows)}
