"""Write the MODEL_CARD.md of an export, in the sections of Mitchell et al. (2019, arXiv 1810.03993).

Its front matter is what model hubs read. The card is meant to be published: a local path is reduced to its last name,
and text of others, such as the name of a class, is escaped so that neither Markdown nor a terminal interprets it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import yaml

from tl_dist.models.export import FORMATS
from tl_dist.refusal import printable, shortened
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import split_ids
from tl_dist.scores.text import interval, paired_test, summary
from tl_dist.trainer.load_model import Restored

MAX_NAMED = 50  # classes


def text(run: RunDir, own: Restored, report: Mapping[str, Any]) -> str:
    """Return the card: what the model is, its training data and its figures, and what is not known about it."""
    cfg, identity = own.config, run.read_identity() or {}
    figures = {k: v for k, v in (run.done or {}).get("figures", {}).items() if k in ("test", "validation")}
    named = ", ".join(_plain(shortened(name, 100)) for name in own.class_names[:MAX_NAMED])
    more = len(own.class_names) - MAX_NAMED
    named += f" and {more} more" if more > 0 else ""
    size = own.model.input_shape[1]
    origin = f"weights '{_plain(_without_place(cfg.model.weights))}'"
    if cfg.source:
        origin = f"the weights of run '{_plain(_without_place(cfg.source.run))}'"
    if cfg.model.prune:
        origin += f" without {cfg.model.prune:g} of the channels of each convolution"
    if identity.get("weights_sha256"):
        origin += f" (sha256 {_plain(identity['weights_sha256'])})"
    taught = f", taught by run '{_plain(_without_place(cfg.distill.teacher))}'" if cfg.distill else ""
    calibrated = (
        f"Probabilities are calibrated: the logits are divided by {own.temperature:.4g}, which was fitted on the "
        "validation split (temperature scaling, Guo et al. 2017); the figures below were taken before."
        if own.temperature is not None
        else ""
    )
    ids_of = split_ids(run) if (run.path / "split.json").exists() else {}
    data = (f"{_plain(name)} {_code(str(value)[:16])}" for name, value in identity.get("data", {}).items())
    config = yaml.safe_dump(_without_place(cfg.model_dump(mode="json")), sort_keys=False)
    config = printable(config, lines=True)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", config)), default=0))
    sections = {
        "Model details": [
            f"An image classifier of {len(own.class_names)} classes: {named}.",
            f"{_plain(cfg.model.backbone)} from {origin}, trained from {_code(cfg.model.train_from)} up by tl_dist"
            f"{taught}, run {_code(run.name)}, step {own.step:,}.",
            f"{own.model.count_params():,} parameters. Computed in {identity.get('precision', 'float32')} in training.",
            calibrated,
            f"This file: `{report['file']}`, {report['to']} in {report['numbers']}, {report['bytes'] / 1e6:.1f} MB.",
        ],
        "How to use": [
            f"Input: uint8 RGB images [batch, {size}, {size}, 3], not yet scaled: preprocessing is part of the model. "
            "Output: the probability of each class, in the order of `classes.json`.",
            "`preprocess.py` makes the input from an image file exactly as training did; another way of resizing "
            "gives other pixels and a little other probabilities.",
        ],
        "Uses": [
            "To tell apart the classes above on images like those that it was trained on. It gives one of them to any "
            "image whatever: nothing tells it that an image shows none. Not examined for use on people.",
        ],
        "Training data": [
            *(f"{_code(split)}: {len(ids):,} images." for split, ids in ids_of.items()),
            f"Data set {_code(cfg.data.name)}, fingerprints {', '.join(data)}.",
        ],
        "Evaluation": [_evaluation(split, split_figures) for split, split_figures in figures.items()]
        or ["The run was not evaluated at its end."],
        "Agreement of this file with the run": _agreement(report),
        "Limits": [
            "One training, one division of the data: an interval says how well this split is known, nothing about "
            "images of another origin. Biases of the pretrained weights and of the labels were not examined.",
        ],
        "How to reproduce": [f"{fence}yaml\n{config}{fence}", "Of local paths it has the names alone."],
        "Versions": [", ".join(f"{name} {number}" for name, number in report["versions"].items())],
    }  # fmt: skip
    body = "\n".join(
        f"## {title}\n\n" + "\n\n".join(filter(None, lines)) + "\n" for title, lines in sections.items()
    )
    front = yaml.safe_dump(_front_matter(own, figures, report), sort_keys=False)
    return f"---\n{front}---\n\n# {_plain(run.name)}\n\n{body}"


_MARKUP = re.compile(r"([\\`*\[\]|#])")


def _plain(text: str) -> str:
    """Escape text of others, so that it is shown and not interpreted."""
    return _MARKUP.sub(r"\\\1", html.escape(printable(text), quote=False))


def _code(text: str) -> str:
    """Return text of others between backticks, where nothing is markup."""
    return f"`{printable(text).replace('`', chr(39))}`"


def _without_place(value: Any) -> Any:
    """Return the value with every path in it reduced to its last name."""
    if isinstance(value, dict):
        return {key: _without_place(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_place(entry) for entry in value]
    return PurePath(value).name if isinstance(value, str) and "/" in value else value


def _front_matter(own: Restored, figures: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    name = own.config.data.name
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": name, "type": name, "split": split},
            "metrics": [{"type": "accuracy", "value": round(split_figures["accuracy"], 6)}],
        }
        for split, split_figures in figures.items()
    ]
    return {
        "pipeline_tag": "image-classification",
        "library_name": FORMATS[report["to"]].library,
        "tags": ["tl_dist", own.config.model.backbone],
        "model-index": [{"name": own.config.name, "results": results}],
    }


def _evaluation(split: str, figures: Mapping[str, Any]) -> str:
    line = f"{_code(split)}: accuracy {figures['accuracy']:.4f}"
    if figures.get("interval"):
        line += f", {interval(figures['interval'], figures.get('interval_by', 'Wilson'))}"
    return f"{line} | {summary(figures)}."


def _agreement(report: Mapping[str, Any]) -> Iterator[str]:
    if "split" not in report:
        yield "Not compared with the run."
        return
    first, second = report["paired"]["accuracies"]
    yield (
        f"The same class for {report['num_agreeing']:,} of {report['num_examples']:,} images of `{report['split']}`; "
        f"largest difference of a probability {report['largest_difference']:.2g}. Accuracy {second:.4f} against "
        f"{first:.4f} of the run ({paired_test(report['paired'])})."
    )
    for rows, times in report["latency_ms"].items():
        yield (
            f"Batch of {rows}: median {times['p50']:.1f} ms, 90 % below {times['p90']:.1f} ms, "
            f"99 % below {times['p99']:.1f} ms, on the CPU that exported it."
        )
