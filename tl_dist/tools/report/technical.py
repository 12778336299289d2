"""How a run went: learning curves, where its time went, and what it ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from tl_dist.tools.report import charts
from tl_dist.tools.report.facts import Facts

_MAX_POINTS = 300


def learning(facts: Facts) -> dict[str, Any] | None:
    """Loss and accuracy of training and of held-out splits, by epoch; None of a run that was not trained in steps."""
    if not facts.events("train"):
        return None
    rows = [
        (
            f"{one['step']:,}",
            one["split"],
            f"{one['accuracy']:.4f}",
            f"{one['loss']:.4f}",
        )
        for one in facts.events("evaluation")
    ]
    table = {"title": "Evaluations", "names": ["step", "split", "accuracy", "loss"], "rows": rows}
    return {"sentence": "", "charts": learning_charts([facts]), "table": table if rows else None}


def learning_charts(runs: Sequence[Facts]) -> list[dict[str, Any]]:
    """One of losses and one of accuracies; none where there is nothing to draw."""
    found = {key: curves_of(runs, key) for key in ("loss", "accuracy")}
    return [
        {
            "svg": charts.lines(
                series, x="epoch", y=key, what=f"Learning curves: {key}", percent=key == "accuracy"
            ),
            "caption": key.capitalize(),
        }
        for key, series in found.items()
        if any(xs for xs, _ in series.values())
    ]


def curves_of(runs: Sequence[Facts], key: str) -> dict[str, tuple[list[float], list[float]]]:
    """A record's `key` by epoch, of training and of each held-out split; of several runs a curve each.

    That is of the split that was evaluated most often, and empty where there is none: it has the colour of its run.
    """
    found: dict[str, tuple[list[float], list[float]]] = {}
    for facts in runs:
        train = _thinned(facts.events("train"))
        at = {one["step"]: one["epoch"] for one in facts.events("train")}
        last = max(at, default=0)
        if train and len(runs) == 1:
            found["train"] = ([one["epoch"] for one in train], [one[key] for one in train])
        held_out: dict[str, list[tuple[float, float]]] = {}
        for one in facts.events("evaluation") if last else ():
            point = (at.get(one["step"], one["step"] * at[last] / last), one[key])
            held_out.setdefault(one["split"], []).append(point)
        if len(runs) > 1:
            split = max(held_out, key=lambda name: len(held_out[name]), default="")
            held_out = {f"{facts.run.name}, {split}" if split else facts.run.name: held_out.get(split, [])}
        found |= {name: ([x for x, _ in of], [y for _, y in of]) for name, of in held_out.items()}
    return found


def _thinned(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most _MAX_POINTS of them, spread evenly, with the last."""
    if len(records) <= _MAX_POINTS:
        return records
    return [records[k] for k in np.linspace(0, len(records) - 1, _MAX_POINTS).round().astype(int)]


def speed(facts: Facts) -> dict[str, Any] | None:
    """How a step's time is shared between computing, waiting for data, and adding up over the workers."""
    told = {"data_wait_share", "reduction_share", "step_s", "examples_per_s"}
    warm = [one for one in facts.events("train")[1:] if one.keys() >= told]  # the first report compiles
    if not warm:
        return None
    shown = _thinned(warm)
    wait = np.array([one["data_wait_share"] for one in shown])
    reduction = np.array([one["reduction_share"] for one in shown])
    parts = {
        "computing": np.clip(1 - wait - reduction, 0, 1),
        "waiting for data": wait,
        "adding up over workers": reduction,
    }
    seconds = float(np.median([one["step_s"] for one in warm]))
    images = float(np.median([one["examples_per_s"] for one in warm]))
    sentence = (
        f"{images:,.0f} images/s and {1e3 * seconds:,.1f} ms a step in the median; of a step's time "
        + ", ".join(f"{100 * float(values.mean()):.0f} % {name}" for name, values in parts.items())
        + "."
    )
    svg = charts.shares(parts, [one["step"] for one in shown], "Parts of a step's time")
    return {
        "sentence": sentence,
        "charts": [{"svg": svg, "caption": "Where a step's time goes"}],
        "table": None,
    }


def environment(facts: Facts) -> dict[str, Any] | None:
    """Workers, versions, data and batch norm: what another attempt would have to have alike.

    None where nothing is recorded: what folds amount to, each a run of its own, was not trained itself.
    """
    if not facts.attempts and not facts.records:
        return None
    cfg, identity = facts.cfg, facts.identity
    hosts = list(dict.fromkeys(str(one["host"]) for one in facts.attempts if "host" in one))
    rows = [
        ("strategy", cfg.strategy),
        ("workers", str(workers_of(facts) or "unknown")),
        ("hosts", ", ".join(hosts) or "unknown"),
        ("attempts", f"{len(facts.attempts):,}"),
        ("trained for", duration(facts) or "unknown"),
        ("computed in", str(identity.get("precision", "unknown"))),
        *((name, number) for name, number in facts.versions.items() if name != "code"),
        *((f"data, {split}", str(digest)[:16]) for split, digest in identity.get("data", {}).items()),
    ]
    if identity.get("weights_sha256"):
        rows.append(("pretrained weights", f"{cfg.model.weights}, sha256 {identity['weights_sha256'][:16]}"))
    parts = [{"title": "", "sentence": "", "names": [], "rows": rows}]
    audit = batch_norm(facts)
    return {"parts": [*parts, audit] if audit else parts}


def batch_norm(facts: Facts) -> dict[str, Any] | None:
    """What became of each batch-norm layer, measured on every worker; layers that fared alike in one row."""
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
            "trained" if trainable else "kept",
            str(mode),
            "moved" if moved else "as they were",
            f"{max(layer['spread'] for layer in layers):.2g}",
        )
        for (trainable, mode, moved), layers in alike.items()
    ]
    return {
        "title": "Batch norm",
        "sentence": f"Policy “{audit['policy']}”: what became of each layer, as measured on all workers at the end.",
        "names": ["layers", "scale and offset", "normalizes by", "statistics", "workers apart"],
        "rows": rows,
    }


def workers_of(facts: Facts) -> int | None:
    """How many trained it last."""
    train = facts.events("train")
    return train[-1].get("workers", facts.cfg.workers) if train else facts.cfg.workers


def duration(facts: Facts) -> str:
    """Of all attempts together; empty where nothing says it."""
    seconds = 0.0
    for one in facts.attempts:
        if one.get("began") and one.get("ended"):
            seconds += (
                datetime.fromisoformat(one["ended"]) - datetime.fromisoformat(one["began"])
            ).total_seconds()
    if not seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
