"""Report on several runs over the same examples: which is better, how surely, and where they disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import file as config_file
from tl_dist.config.file import differences
from tl_dist.scores import clusters, figures
from tl_dist.tools.report import trust
from tl_dist.tools.report.facts import Facts, same_examples
from tl_dist.tools.report.page import NOT_DEFINED, Section, percent, render
from tl_dist.tools.report.technical import learning_charts

MAX_PICTURES = 600
_ALPHA = 0.05
_MORE = {"macro_f1": "macro F1", "mcc": "MCC", "roc_auc": "ROC-AUC", "log_loss": "log loss", "ece": "ECE"}


@dataclass(frozen=True, eq=False)
class Compared:
    """Several runs and their predictions for the same examples."""

    runs: Sequence[Facts]
    ids: NDArray[Any]
    labels: NDArray[np.int32]
    probabilities: Sequence[NDArray[np.floating]]
    """one array [examples, classes] per run"""
    groups: clusters.Groups = ()
    """of the examples, if they have any"""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Return the predicted classes [runs, examples]."""
        return np.stack([each.argmax(axis=1) for each in self.probabilities])

    @property
    def right(self) -> NDArray[np.bool_]:
        """Return which predictions are correct [runs, examples]."""
        return self.predicted == self.labels

    def disagreements(self) -> NDArray[np.int64]:
        """List at most MAX_PICTURES examples that some runs classify correctly and others not, surest errors first."""
        right = self.right
        mixed = np.flatnonzero(right.any(axis=0) & ~right.all(axis=0))
        confidence = np.stack([each.max(axis=1) for each in self.probabilities])
        surest = np.where(right, 0.0, confidence).max(axis=0)[mixed]
        return mixed[np.argsort(-surest, kind="stable")][:MAX_PICTURES]

    def shown(self) -> list[str]:
        """List the ids whose pictures the page shows."""
        return [str(name) for name in self.ids[self.disagreements()]]


def compare(runs: Sequence[Facts]) -> Compared:
    """Bring the predictions of the runs into one order; refuses (65) runs that were evaluated on other examples."""
    orders = same_examples(runs)
    first = runs[0].predictions
    parts = [facts.predictions.probabilities[order] for facts, order in zip(runs, orders, strict=True)]
    groups = clusters.shared(zip((facts.predictions.groups for facts in runs), orders, strict=True))
    return Compared(runs, first.ids[orders[0]], first.labels[orders[0]], parts, groups)


def page(compared: Compared, images: Mapping[str, str], notes: Sequence[str]) -> bytes:
    """Render the page, which measures the other runs against the first."""
    script, disagreements = _disagreements(compared, images)
    tests = _tests(compared)
    sections = [
        Section("verdict", "Verdict", "runs", _verdict(compared, tests, notes)),
        Section("tests", "Paired tests", "paired", tests),
        Section("disagreements", "Where they disagree", "disagreements", disagreements),
        Section("robustness", "Robustness", "facts", trust.robust_compared(compared.runs)),
        Section("learning", "Learning curves", "charts", _learning(compared.runs)),
        Section("differences", "Differences", "facts", _differences(compared.runs)),
    ]
    names = " and ".join(facts.run.name for facts in compared.runs)
    return render(names, f"Comparison of runs, {compared.runs[0].subject}", sections, script)


def _verdict(compared: Compared, tests: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    rows = []
    for facts, probabilities in zip(compared.runs, compared.probabilities, strict=True):
        scores = figures.figures(compared.labels, probabilities, compared.groups)
        more = [NOT_DEFINED if scores.get(key) is None else f"{scores[key]:.3f}" for key in _MORE]
        row = {key: scores[key] for key in ("accuracy", "interval")}
        rows.append({"name": facts.run.name, **row, "more": more})
    best = max(rows, key=lambda row: row["accuracy"])
    surely = [row for row in tests["rows"] if row["surely"]]
    if surely:
        headline = f"{best['name']}: {percent(best['accuracy'])}"
        sentence = "; ".join(f"{row['second']} is {row['words']} than {row['first']}" for row in surely)
        sentence = f"More than chance explains (Holm-corrected p below {_ALPHA}): {sentence}."
    else:
        headline = "No significant difference"
        sentence = (
            f"On these {len(compared.labels):,} images each difference may be due to chance: no Holm-corrected p is "
            f"below {_ALPHA}. That does not prove the runs equal; the intervals show how far apart they may be."
        )
    return {
        "headline": headline,
        "sentence": " ".join([sentence, *notes]),
        "rows": rows,
        "names": list(_MORE.values()),
    }


def _tests(compared: Compared) -> dict[str, Any]:
    """Test each run against the first on the same examples."""
    names = [facts.run.name for facts in compared.runs]
    tests = [
        figures.paired(compared.labels, compared.probabilities[0], other, compared.groups)
        for other in compared.probabilities[1:]
    ]
    corrected = clusters.holm([test["p_value"] for test in tests])
    rows = [
        {
            "first": names[0],
            "second": name,
            "difference": f"{100 * test['difference']:+.1f} points",
            "words": f"{100 * abs(test['difference']):.1f} points {'better' if test['difference'] > 0 else 'worse'}",
            "interval": f"{100 * test['interval'][0]:+.1f} to {100 * test['interval'][1]:+.1f}",
            "only_first": f"{test['only_first']:,}",
            "only_second": f"{test['only_second']:,}",
            "p": f"{test['p_value']:.3g}",
            "holm": f"{p:.3g}",
            "surely": p < _ALPHA,
        }
        for name, test, p in zip(names[1:], tests, corrected, strict=True)
    ]
    sentence = (
        f"Each run against “{names[0]}” on the same {len(compared.labels):,} images. Only images that exactly one of "
        f"the two classifies correctly count. Intervals: {tests[0].get('interval_by', 'paired bootstrap')}, 95 %."
    )
    return {"sentence": sentence, "rows": rows, "test": tests[0].get("test", "McNemar")}


def _disagreements(compared: Compared, images: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the data of the page's script, and the content of the section."""
    names, labels = compared.runs[0].class_names, compared.labels
    predicted, right = compared.predicted, compared.right
    pictured = [k for k in compared.disagreements().tolist() if str(compared.ids[k]) in images]
    cards, orders = [], {"all": list(range(len(pictured)))}
    for k in pictured:
        answers = [
            [facts.run.name, f"{names[predicted[r, k]]} {percent(float(compared.probabilities[r][k].max()))}"]
            for r, facts in enumerate(compared.runs)
        ]
        cards.append(
            {
                "id": str(compared.ids[k]),
                "prediction": " · ".join(names[predicted[r, k]] for r in range(len(compared.runs))),
                "label": f"label: {names[labels[k]]}",
                "right": True,
                "classes": [int(labels[k]), int(predicted[0, k])],
                "image": images[str(compared.ids[k])],
                "heat": None,
                "facts": [["label", names[labels[k]]], *answers],
            }
        )
    chips = [{"key": "all", "text": "All"}]
    for r, facts in enumerate(compared.runs):
        orders[f"run-{r}"] = [n for n, k in enumerate(pictured) if right[r, k]]
        chips.append({"key": f"run-{r}", "text": f"{facts.run.name} is right"})
    mixed = int((right.any(axis=0) & ~right.all(axis=0)).sum())
    both, none = int(right.all(axis=0).sum()), int((~right.any(axis=0)).sum())
    sentence = f"All runs are right on {both:,} images, none on {none:,}, and only some on {mixed:,}."
    return {"class_names": names, "examples": cards, "orders": orders}, {"sentence": sentence, "chips": chips}


def _learning(runs: Sequence[Facts]) -> dict[str, Any] | None:
    charts = learning_charts(runs)
    return {"sentence": "", "charts": charts, "table": None} if charts else None


def _differences(runs: Sequence[Facts]) -> dict[str, Any]:
    """List how the configs of the runs differ from the config of the first."""
    first = config_file.trajectory(runs[0].cfg)
    parts = []
    for facts in runs[1:]:
        own = config_file.trajectory(facts.cfg)
        lines = differences(first, own, sorted(first.keys() | own.keys()))
        rows = [tuple(line.split(": ", 1)) for line in lines]
        title = f"{runs[0].run.name} → {facts.run.name}"
        sentence = "" if rows else "Their configs differ in nothing that changes results."
        parts.append({"title": title, "sentence": sentence, "names": [], "rows": rows})
    return {"parts": parts}
