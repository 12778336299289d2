"""Report on several runs over the same examples: which is better, how surely, and where they disagree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist import tasks
from tl_dist.config import file as config_file
from tl_dist.config.file import differences
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import clusters, figures, robustness
from tl_dist.scores.text import NOT_DEFINED, figure, percent, points
from tl_dist.tools.report import charted
from tl_dist.tools.report.facts import Facts
from tl_dist.tools.report.page import Section, card, render

MAX_PICTURES = 600
_ALPHA = 0.05
_MORE = {
    "quadratic_kappa": "quadratic kappa", "mae": "MAE in grades", "macro_f1": "macro F1", "mcc": "MCC",
    "roc_auc": "ROC-AUC", "log_loss": "log loss", "ece": "ECE",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Compared:
    """Several runs and their predictions for the same examples."""

    runs: Sequence[Facts]
    ids: NDArray[Any]
    labels: NDArray[np.int32]
    probabilities: Sequence[NDArray[np.floating]]  # one array [examples, classes] per run
    predicted: NDArray[np.int64]  # the classes [runs, examples]
    groups: clusters.Groups  # of the examples, if they have any

    def disagreements(self) -> NDArray[np.int64]:
        """List at most MAX_PICTURES examples that some runs classify correctly and others not, surest errors first."""
        right = self.predicted == self.labels
        mixed = np.flatnonzero(right.any(axis=0) & ~right.all(axis=0))
        confidence = np.stack([each.max(axis=1) for each in self.probabilities])
        surest = np.where(right, 0.0, confidence).max(axis=0)[mixed]
        return mixed[np.argsort(-surest, kind="stable")][:MAX_PICTURES]


def compare(runs: Sequence[Facts]) -> Compared:
    """Bring the predictions of the runs into one order; refuses (65) runs that were evaluated on other examples."""
    orders = [np.argsort(facts.predictions.ids) for facts in runs]
    first = runs[0]
    ids, labels = (values[orders[0]] for values in (first.predictions.ids, first.predictions.labels))
    for facts, order in zip(runs, orders, strict=True):
        same = np.array_equal(facts.predictions.ids[order], ids) and facts.class_names == first.class_names
        if not same or not np.array_equal(facts.predictions.labels[order], labels):
            raise Refusal(
                f"{first.run.path} and {facts.run.path} were not evaluated on the same examples of '{first.split}'.",
                fix="train both with the same data section (split_seed and fractions), or report them one by one.",
                code=ExitCode.DATA,
            )
    parts = [facts.predictions.probabilities[order] for facts, order in zip(runs, orders, strict=True)]
    groups = clusters.shared(zip((facts.predictions.groups for facts in runs), orders, strict=True))
    return Compared(runs, ids, labels, parts, np.stack([each.argmax(axis=1) for each in parts]), groups)


def page(compared: Compared, images: Mapping[str, str], notes: Sequence[str]) -> bytes:
    """Render the page, which measures the other runs against the first."""
    script, disagreements = _disagreements(compared, images)
    names, (first, *others) = [facts.run.name for facts in compared.runs], compared.probabilities
    paired = [figures.paired(compared.labels, first, other, compared.groups) for other in others]
    corrected = clusters.holm([test["p_value"] for test in paired])
    tests = {
        "tests": [
            {**test, "first": names[0], "second": name, "holm": p}
            for name, test, p in zip(names[1:], paired, corrected, strict=True)
        ],
        "alpha": _ALPHA,
        "num_examples": len(compared.labels),
    }
    rows = [
        (facts.run.name, tasks.of(facts.cfg).figures(compared.labels, probabilities, compared.groups))
        for facts, probabilities in zip(compared.runs, compared.probabilities, strict=True)
    ]
    known = {key: name for key, name in _MORE.items() if any(key in scores for _, scores in rows)}
    best = max(rows, key=lambda row: row[1]["accuracy"])
    verdict = {**tests, "rows": rows, "best": best, "names": known, "notes": notes}
    sections = [
        Section("verdict", "Verdict", "runs", verdict),
        Section("tests", "Paired tests", "paired", tests),
        Section("disagreements", "Where they disagree", "disagreements", disagreements),
        Section("robustness", "Robustness", "robustness_compared", _robustness(compared.runs)),
        Section("learning", "Learning curves", "charts", charted.learning(compared.runs)),
        Section("differences", "Differences", "facts", _differences(compared.runs)),
    ]
    return render(" and ".join(names), f"Comparison of runs, {compared.runs[0].subject}", sections, script)


def _disagreements(compared: Compared, images: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    names, labels = compared.runs[0].class_names, compared.labels
    predicted, right = compared.predicted, compared.predicted == compared.labels
    pictured = [k for k in compared.disagreements().tolist() if str(compared.ids[k]) in images]
    cards = []
    for k in pictured:
        answers = [names[j] for j in predicted[:, k]]
        sure = [percent(float(each[k].max())) for each in compared.probabilities]
        runs = zip(compared.runs, answers, sure, strict=True)
        shown = [[facts.run.name, f"{answer} {share}"] for facts, answer, share in runs]
        words = {"prediction": " · ".join(answers), "label": f"label: {names[labels[k]]}"}
        name, classes = str(compared.ids[k]), [int(labels[k]), int(predicted[0, k])]
        cards.append(card(name, images[name], [["label", names[labels[k]]], *shown], classes=classes, **words))
    orders = {"all": list(range(len(pictured)))}
    chips = {"all": "All"}
    for r, facts in enumerate(compared.runs):
        orders[f"run-{r}"] = [n for n, k in enumerate(pictured) if right[r, k]]
        chips[f"run-{r}"] = f"{facts.run.name} is right"
    num_right = np.bincount(right.sum(axis=0), minlength=len(compared.runs) + 1)
    script = {"class_names": names, "examples": cards, "orders": orders}
    return script, {"num_right": num_right, "chips": chips}


def _robustness(runs: Sequence[Facts]) -> dict[str, Any] | None:
    """Compare each run with the first on the same corrupted images; None if fewer than two were evaluated on them."""
    first, *others = [(facts.run.name, charted.hits_of(facts)) for facts in runs]
    rows, methods = [], set()
    for name, hits in others:
        if first[1] is None or hits is None:
            continue
        try:
            compared = robustness.compared(first[1], hits)
        except ValueError:  # other corruptions or severities: not comparable
            continue
        ratio, difference, interval = figure(compared["mce"], undefined=NOT_DEFINED), NOT_DEFINED, NOT_DEFINED
        if compared["difference"] is not None:
            difference = f"{points(compared['difference'])} points"
            interval = " to ".join(map(points, compared["interval"]))
        rows.append((name, ratio, difference, interval))
        methods.add(compared.get("interval_by", "paired bootstrap over images"))
    return {"first": first[0], "rows": rows, "methods": sorted(methods)} if rows else None


def _differences(runs: Sequence[Facts]) -> dict[str, Any]:
    first = config_file.trajectory(runs[0].cfg)
    parts = []
    for facts in runs[1:]:
        own = config_file.trajectory(facts.cfg)
        rows = [line.split(": ", 1) for line in differences(first, own, sorted(first.keys() | own.keys()))]
        sentence = "" if rows else "Their configs differ in nothing that changes results."
        parts.append((f"{runs[0].run.name} → {facts.run.name}", sentence, (), rows))
    return {"parts": parts}
