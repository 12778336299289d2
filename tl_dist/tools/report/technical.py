"""Sections on how a run went: learning curves, where its time was spent, and what it ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from tl_dist.tools.report import charts
from tl_dist.tools.report.facts import Facts

_MAX_POINTS = 300


def learning(facts: Facts) -> dict[str, Any] | None:
    """Draw loss and accuracy of training and of held-out splits by epoch; None if the run was not trained in steps."""
    if not facts.events("train"):
        return None
    rows = [
        (f"{record['step']:,}", record["split"], f"{record['accuracy']:.4f}", f"{record['loss']:.4f}")
        for record in facts.events("evaluation")
    ]
    table = {"title": "Evaluations", "names": ["step", "split", "accuracy", "loss"], "rows": rows}
    return {"sentence": "", "charts": learning_charts([facts]), "table": table if rows else None}


def learning_charts(runs: Sequence[Facts]) -> list[dict[str, Any]]:
    """Draw one chart of losses and one of accuracies; a chart without curves is left out."""
    curves = {key: curves_of(runs, key) for key in ("loss", "accuracy")}
    return [
        {
            "svg": charts.lines(
                series, x="epoch", y=key, what=f"Learning curves: {key}", percent=key == "accuracy"
            ),
            "caption": key.capitalize(),
        }
        for key, series in curves.items()
        if any(xs for xs, _ in series.values())
    ]


def curves_of(runs: Sequence[Facts], key: str) -> dict[str, tuple[list[float], list[float]]]:
    """Return `key` of the records by epoch: one curve for training and one per held-out split, or one curve per run.

    With several runs, a run's curve shows the split it was evaluated on most often. A run without evaluations has an
    empty curve, so that the curves after it keep the colours of their runs.
    """
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for facts in runs:
        train = _thinned(facts.events("train"))
        epochs = {record["step"]: record["epoch"] for record in facts.events("train")}
        last = max(epochs, default=0)
        if train and len(runs) == 1:
            curves["train"] = ([record["epoch"] for record in train], [record[key] for record in train])
        held_out: dict[str, list[tuple[float, float]]] = {}
        for record in facts.events("evaluation") if last else ():
            epoch = epochs.get(record["step"], record["step"] * epochs[last] / last)
            held_out.setdefault(record["split"], []).append((epoch, record[key]))
        if len(runs) > 1:
            split = max(held_out, key=lambda name: len(held_out[name]), default="")
            held_out = {f"{facts.run.name}, {split}" if split else facts.run.name: held_out.get(split, [])}
        curves |= {
            name: ([x for x, _ in points], [y for _, y in points]) for name, points in held_out.items()
        }
    return curves


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
    seconds = float(np.median([record["step_s"] for record in warm]))
    images = float(np.median([record["examples_per_s"] for record in warm]))
    sentence = (
        f"Median: {images:,.0f} images/s, {1e3 * seconds:,.1f} ms per step. Mean shares of a step's time: "
        + ", ".join(f"{100 * float(values.mean()):.0f} % {name}" for name, values in parts.items())
        + "."
    )
    svg = charts.shares(parts, [record["step"] for record in shown], "Parts of a step's time")
    return {
        "sentence": sentence,
        "charts": [{"svg": svg, "caption": "Where the time of a step goes"}],
        "table": None,
    }


def environment(facts: Facts) -> dict[str, Any] | None:
    """List workers, versions, data and batch norm: what a reproduction would need to match.

    None if nothing is recorded: a run that merges folds, each of them a run of its own, was not trained itself.
    """
    if not facts.attempts and not facts.records:
        return None
    cfg, identity = facts.cfg, facts.identity
    hosts = list(dict.fromkeys(str(attempt["host"]) for attempt in facts.attempts if "host" in attempt))
    rows = [
        ("strategy", cfg.strategy),
        ("workers", str(workers_of(facts) or "unknown")),
        ("hosts", ", ".join(hosts) or "unknown"),
        ("attempts", f"{len(facts.attempts):,}"),
        ("training time", duration(facts) or "unknown"),
        ("precision", str(identity.get("precision", "unknown"))),
        *((name, number) for name, number in facts.versions.items() if name != "code"),
        *((f"data, {split}", str(digest)[:16]) for split, digest in identity.get("data", {}).items()),
    ]
    if identity.get("weights_sha256"):
        rows.append(("pretrained weights", f"{cfg.model.weights}, sha256 {identity['weights_sha256'][:16]}"))
    parts = [{"title": "", "sentence": "", "names": [], "rows": rows}]
    audit = batch_norm(facts)
    return {"parts": [*parts, audit] if audit else parts}


def batch_norm(facts: Facts) -> dict[str, Any] | None:
    """Show how each batch-norm layer was treated, as measured on every worker; layers treated alike share a row."""
    audits = facts.events("batch_norm")
    if not audits:
        return None
    audit = audits[-1]
    alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for layer in audit["layers"]:
        alike.setdefault((layer["trainable"], layer["mode"], layer["statistics_moved"]), []).append(layer)
    rows = [
        (
            f"{len(layers)}: {layers[0]['layer']}"
            + (f" to {layers[-1]['layer']}" if len(layers) > 1 else ""),
            "trained" if trainable else "frozen",
            str(mode),
            "updated" if moved else "unchanged",
            f"{max(layer['spread'] for layer in layers):.2g}",
        )
        for (trainable, mode, moved), layers in alike.items()
    ]
    return {
        "title": "Batch norm",
        "sentence": f"Policy “{audit['policy']}”: how each layer was treated, measured on all workers at the end.",
        "names": ["layers", "scale and offset", "normalizes by", "statistics", "spread over workers"],
        "rows": rows,
    }


def workers_of(facts: Facts) -> int | None:
    """Return the number of workers of the last attempt."""
    train = facts.events("train")
    return train[-1].get("workers", facts.cfg.workers) if train else facts.cfg.workers


def duration(facts: Facts) -> str:
    """Format the time of all attempts together; empty if it was not recorded."""
    seconds = 0.0
    for attempt in facts.attempts:
        if attempt.get("began") and attempt.get("ended"):
            began, ended = (datetime.fromisoformat(attempt[key]) for key in ("began", "ended"))
            seconds += (ended - began).total_seconds()
    if not seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
