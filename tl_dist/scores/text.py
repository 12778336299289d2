"""Figures as text: the one way in which the terminal, a report, a model card and a picture write them."""

from collections.abc import Mapping, Sequence
from typing import Any

FIGURES = {
    "top5": "top-5", "balanced_accuracy": "balanced", "macro_f1": "macro F1", "weighted_f1": "weighted F1",
    "mcc": "MCC", "roc_auc": "ROC-AUC", "log_loss": "log loss", "ece": "ECE",
    "quadratic_kappa": "quadratic kappa", "mae": "MAE", "map": "mAP", "micro_f1": "micro F1",
    "hamming_loss": "wrong labels", "rmse": "RMSE", "r2": "R2", "spearman": "Spearman",
}  # fmt: skip
"""short names of the figures beside the accuracy"""
NOT_DEFINED = "\N{EN DASH}"
MAX_CLASSES = 10
MAX_LINES = 10


def figure(value: float | None, digits: int = 3, *, undefined: str = "-") -> str:
    """Write a figure with a fixed number of decimals."""
    return undefined if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """Write a share as a percentage with one decimal and a no-break space."""
    return NOT_DEFINED if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def points(difference: float | None) -> str:
    """Write a difference of shares in points, with its sign."""
    return NOT_DEFINED if difference is None else f"{100 * difference:+.1f}"


def counted(num: int, noun: str) -> str:
    """Write a number with its noun, such as "1,200 images"."""
    return f"{num:,} {noun}{'s' * (num != 1)}"


def span(ends: Sequence[float], spec: str = ".4f") -> str:
    """Write both ends of an interval: "0.9123 to 0.9456"."""
    low, high = ends
    return f"{low:{spec}} to {high:{spec}}"


def interval(ends: Sequence[float], by: str = "", spec: str = ".4f") -> str:
    """Write a 95 % interval and the method that it is `by`."""
    return f"95 % interval {span(ends, spec)}" + (f" ({by})" if by else "")


def p_value(p: float) -> str:
    """Write a p-value: "p = 0.0312"."""
    return f"p = {p:.3g}"


def paired_test(result: Mapping[str, Any]) -> str:
    """Name the test of `figures.paired`, and write its p-value."""
    return f"{result.get('test', 'exact McNemar test')} {p_value(result['p_value'])}"


def summary(values: Mapping[str, Any]) -> str:
    """Write figures in one line, without the undefined ones."""
    names = FIGURES | {name: name for name in values.get("own", ())}
    known = {name: values[key] for key, name in names.items() if values.get(key) is not None}
    return " | ".join(f"{name} {figure(value)}" for name, value in known.items())


def calibration(effect: Mapping[str, Any]) -> str:
    """Write the effect of a temperature: "calibrated, temperature 1.830: log loss 0.402 to 0.361, ..."."""
    before, after = effect["before"], effect["after"]
    changes = [
        f"{FIGURES[key]} {figure(before[key])} to {figure(after[key])}"
        for key in ("log_loss", "ece")
        if before[key] is not None
    ]
    num = effect["num_fitted"]
    flatters = f" (fitted to {num:,} of these very images: it flatters)" if num else ""
    return f"calibrated, temperature {figure(effect['temperature'])}: {', '.join(changes)}{flatters}"


def decision(effect: Mapping[str, Any]) -> str:
    """Write the effect of a rule: "AIM: recall 0.957 (95 % interval 0.9213 to 0.9801; 0.811 without the rule), ..."."""
    here = " (on which it was chosen: it flatters)" if effect.get("chosen_here") else ""
    parts = []
    for name in ("recall", "precision", "f1", "accuracy", "cost"):
        if name not in effect:
            continue
        ends = effect.get(f"{name}_interval")
        known = f"{interval(ends)}; " if ends else ""
        parts.append(f"{name} {figure(effect[name])} ({known}{figure(effect[f'{name}_plain'])} without the rule)")
    return f"{effect['aim']}{here}: {', '.join(parts)}"


def worst_group(kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the first row of `groups.by_group`, and whether it is below the others by more than chance."""
    worst = rows[0]
    over = f", over {counted(worst['num_units'], 'group')}" if "num_units" in worst else ""
    line = (
        f"worst {kind}: {worst['name']}, accuracy {worst['accuracy']:.4f} of {worst['num_examples']:,} "
        f"({interval(worst['interval'])}{over})"
    )
    if (p := worst["p_value"]) is None:
        return line
    sure = "less accurate than the others" if p < 0.05 else "no more than chance explains"
    return f"{line}; {sure}, {p_value(p)}"


def never_seen(classes: Sequence[Mapping[str, Any]], where: str = "in training") -> str:
    """Write `evaluation.never_seen`: "never seen in training: dog (20 images), which can hardly be right; ..."."""
    each = ", ".join(f"{row['class']} ({counted(row['num_examples'], 'image')})" for row in classes[:MAX_CLASSES])
    more = len(classes) - MAX_CLASSES
    each += f" and {more} more classes" if more > 0 else ""
    return f"never seen {where}: {each}, which can hardly be right; each adds at most 36 to the log loss"


def never_seen_by_fold(summary: Mapping[str, Any]) -> list[str]:
    """Write such classes of a `cross_validation.summary`, one line per fold, for the first folds."""
    lines = [
        f"{row['fold']}: {never_seen(row['classes'], 'in training of this fold')}"
        for row in summary.get("never_seen", ())
    ]
    more = len(lines) - MAX_LINES
    return [*lines[:MAX_LINES], *([f"and {more} more"] if more > 0 else [])]
