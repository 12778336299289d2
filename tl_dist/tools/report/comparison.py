"""The report of several runs on the same examples: who is better, how surely, and where they disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import file as config_file
from tl_dist.runs.differences import differences
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
    """Runs, and what each said of the same examples."""

    runs: Sequence[Facts]
    ids: NDArray[Any]
    labels: NDArray[np.int32]
    probabilities: Sequence[NDArray[np.floating]]
    """of each run [examples, classes]"""
    groups: clusters.Groups = ()
    """of the examples, where they have any"""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """[runs, examples]"""
        return np.stack([one.argmax(axis=1) for one in self.probabilities])

    @property
    def right(self) -> NDArray[np.bool_]:
        """[runs, examples]"""
        return self.predicted == self.labels

    def disagreements(self) -> NDArray[np.int64]:
        """Examples that some runs have right and others not, those of the surest error first; at most MAX_PICTURES."""
        right = self.right
        apart = np.flatnonzero(right.any(axis=0) & ~right.all(axis=0))
        confidence = np.stack([one.max(axis=1) for one in self.probabilities])
        surest = np.where(right, 0.0, confidence).max(axis=0)[apart]
        return apart[np.argsort(-surest, kind="stable")][:MAX_PICTURES]

    def shown(self) -> list[str]:
        """The ids whose pictures the page shows."""
        return [str(name) for name in self.ids[self.disagreements()]]


def compare(runs: Sequence[Facts]) -> Compared:
    """Refuses (65) runs that were evaluated on other examples, and (64) more than can be told apart."""
    orders = same_examples(list(runs))
    first = runs[0].said
    parts = [facts.said.probabilities[order] for facts, order in zip(runs, orders, strict=True)]
    groups = clusters.shared(zip((facts.said.groups for facts in runs), orders, strict=True))
    return Compared(runs, first.ids[orders[0]], first.labels[orders[0]], parts, groups)


def page(compared: Compared, images: Mapping[str, str], notes: Sequence[str]) -> bytes:
    """The page; the first run is what the others are measured against."""
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
        found = figures.figures(compared.labels, probabilities, compared.groups)
        more = [NOT_DEFINED if found.get(key) is None else f"{found[key]:.3f}" for key in _MORE]
        row = {key: found[key] for key in ("accuracy", "interval")}
        rows.append({"name": facts.run.name, **row, "more": more})
    best = max(rows, key=lambda row: row["accuracy"])
    surely = [row for row in tests["rows"] if row["surely"]]
    if surely:
        headline = f"{best['name']}: {percent(best['accuracy'])}"
        sentence = "; ".join(f"{row['second']} is {row['words']} than {row['first']}" for row in surely)
        sentence = f"More than chance explains (Holm-corrected p below {_ALPHA}): {sentence}."
    else:
        headline = "No difference is shown"
        sentence = (
            f"On these {len(compared.labels):,} images each difference may be chance: no Holm-corrected p is below "
            f"{_ALPHA}. That does not show that they are equal; the intervals say how far apart they may be."
        )
    return {
        "headline": headline,
        "sentence": " ".join([sentence, *notes]),
        "rows": rows,
        "names": list(_MORE.values()),
    }


def _tests(compared: Compared) -> dict[str, Any]:
    """Each run against the first, on the same examples."""
    names = [facts.run.name for facts in compared.runs]
    found = [
        figures.paired(compared.labels, compared.probabilities[0], other, compared.groups)
        for other in compared.probabilities[1:]
    ]
    corrected = figures.holm([one["p_value"] for one in found])
    rows = [
        {
            "first": names[0],
            "second": name,
            "difference": f"{100 * one['difference']:+.1f} points",
            "words": f"{100 * abs(one['difference']):.1f} points {'better' if one['difference'] > 0 else 'worse'}",
            "interval": f"{100 * one['interval'][0]:+.1f} to {100 * one['interval'][1]:+.1f}",
            "only_first": f"{one['only_first']:,}",
            "only_second": f"{one['only_second']:,}",
            "p": f"{one['p_value']:.3g}",
            "holm": f"{p:.3g}",
            "surely": p < _ALPHA,
        }
        for name, one, p in zip(names[1:], found, corrected, strict=True)
    ]
    sentence = (
        f"Each run against “{names[0]}” on the same {len(compared.labels):,} images. Only those count that one has "
        f"right and the other not. Intervals: {found[0].get('interval_by', 'paired bootstrap')}, 95 %."
    )
    return {"sentence": sentence, "rows": rows, "test": found[0].get("test", "McNemar")}


def _disagreements(compared: Compared, images: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the script shows, and the section."""
    names, labels = compared.runs[0].class_names, compared.labels
    predicted, right = compared.predicted, compared.right
    kept = [k for k in compared.disagreements().tolist() if str(compared.ids[k]) in images]
    cards, orders = [], {"all": list(range(len(kept)))}
    for k in kept:
        said = [
            [facts.run.name, f"{names[predicted[r, k]]} {percent(float(compared.probabilities[r][k].max()))}"]
            for r, facts in enumerate(compared.runs)
        ]
        cards.append(
            {
                "id": str(compared.ids[k]),
                "said": " · ".join(names[predicted[r, k]] for r in range(len(compared.runs))),
                "label": f"label: {names[labels[k]]}",
                "right": True,
                "classes": [int(labels[k]), int(predicted[0, k])],
                "image": images[str(compared.ids[k])],
                "heat": None,
                "facts": [["label", names[labels[k]]], *said],
            }
        )
    chips = [{"key": "all", "text": "All"}]
    for r, facts in enumerate(compared.runs):
        orders[f"run-{r}"] = [n for n, k in enumerate(kept) if right[r, k]]
        chips.append({"key": f"run-{r}", "text": f"{facts.run.name} is right"})
    apart = int((right.any(axis=0) & ~right.all(axis=0)).sum())
    both, none = int(right.all(axis=0).sum()), int((~right.any(axis=0)).sum())
    sentence = (
        f"All are right in {both:,} images, none in {none:,}; in {apart:,} some are right and others not."
    )
    return {"class_names": names, "examples": cards, "orders": orders}, {"sentence": sentence, "chips": chips}


def _learning(runs: Sequence[Facts]) -> dict[str, Any] | None:
    made = learning_charts(runs)
    return {"sentence": "", "charts": made, "table": None} if made else None


def _differences(runs: Sequence[Facts]) -> dict[str, Any]:
    """What the configs of the runs have different from that of the first."""
    first = config_file.trajectory(runs[0].cfg)
    parts = []
    for facts in runs[1:]:
        own = config_file.trajectory(facts.cfg)
        found = differences(first, own, sorted(first.keys() | own.keys()))
        rows = [tuple(line.split(": ", 1)) for line in found]
        title = f"{runs[0].run.name} → {facts.run.name}"
        sentence = "" if rows else "Nothing that changes numbers is different in their configs."
        parts.append({"title": title, "sentence": sentence, "names": [], "rows": rows})
    return {"parts": parts}
