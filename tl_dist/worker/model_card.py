"""MODEL_CARD.md of an export, with the sections of the model cards of Mitchell et al. (2019, arXiv 1810.03993).

Its front matter is what model hubs read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tl_dist.models.export import FORMATS
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import split_ids
from tl_dist.scores.figures import summary_line
from tl_dist.worker.restored import Restored

MAX_NAMED = 50  # classes


def text(run: RunDir, own: Restored, report: Mapping[str, Any]) -> str:
    """The card: what the model is, was trained on and reaches, and what is not known of it."""
    cfg, identity = own.config, run.read_identity() or {}
    figures = (run.done or {}).get("figures", {})
    named = ", ".join(own.class_names[:MAX_NAMED])
    more = f" and {len(own.class_names) - MAX_NAMED} more" if len(own.class_names) > MAX_NAMED else ""
    size = own.model.input_shape[1]
    origin = f"the weights of run '{cfg.source.run}'" if cfg.source else f"weights '{cfg.model.weights}'"
    if cfg.model.prune:
        origin += f" without {cfg.model.prune:g} of the channels of each convolution"
    taught = f", taught by run '{cfg.distill.teacher}'" if cfg.distill else ""
    digest = identity.get("weights_sha256")
    sections = {
        "Model details": [
            f"An image classifier of {len(own.class_names)} classes: {named}{more}.",
            f"{cfg.model.backbone} from {origin}" + (f" (sha256 {digest})" if digest else "")
            + f", trained from `{cfg.model.train_from}` up by tl_dist{taught}, run `{run.name}`, step {own.step:,}.",
            f"{own.model.count_params():,} parameters. Computed in {identity.get('precision', 'float32')} in training.",
            *_calibrated(own),
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
            *_splits(run),
            f"Data set `{cfg.data.name}`, fingerprints "
            + ", ".join(f"{split} `{value[:16]}`" for split, value in identity.get("data", {}).items()) + ".",
        ],
        "Evaluation": [*(_evaluated(split, found) for split, found in figures.items())]
        or ["The run was not evaluated at its end."],
        "Agreement of this file with the run": _agreement(report),
        "Limits": [
            "One training, one division of the data: an interval says how well this split is known, nothing about "
            "images of another origin. Biases of the pretrained weights and of the labels were not examined.",
        ],
        "How to reproduce": ["```yaml\n" + run.config_file.read_text(encoding="utf-8").strip() + "\n```"],
        "Versions": [", ".join(f"{name} {number}" for name, number in report["versions"].items())],
    }  # fmt: skip
    body = "\n".join(f"## {title}\n\n" + "\n\n".join(lines) + "\n" for title, lines in sections.items())
    return f"---\n{yaml.safe_dump(_front_matter(own, figures, report), sort_keys=False)}---\n\n# {run.name}\n\n{body}"


def _calibrated(own: Restored) -> list[str]:
    if own.temperature is None:
        return []
    return [
        f"Probabilities are calibrated: the logits are divided by {own.temperature:.4g}, which was fitted on the "
        "validation split (temperature scaling, Guo et al. 2017); the figures below are those before."
    ]


def _splits(run: RunDir) -> list[str]:
    """How many images each split has, by the manifest that the run froze."""
    return [f"`{split}`: {len(ids):,} images." for split, ids in split_ids(run).items()]


def _front_matter(own: Restored, figures: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    name = own.config.data.name
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": name, "type": name, "split": split},
            "metrics": [{"type": "accuracy", "value": round(found["accuracy"], 6)}],
        }
        for split, found in figures.items()
    ]
    return {
        "pipeline_tag": "image-classification",
        "library_name": FORMATS[report["to"]].library,
        "tags": ["tl_dist", own.config.model.backbone],
        "model-index": [{"name": own.config.name, "results": results}],
    }


def _evaluated(split: str, found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    line = f"`{split}`: accuracy {found['accuracy']:.4f}, 95 % interval {low:.4f} to {high:.4f} "
    line += f"({found.get('interval_by', 'Wilson')})"
    return f"{line} | {summary_line(found)}."


def _agreement(report: Mapping[str, Any]) -> list[str]:
    if "split" not in report:
        return ["Not compared with the run."]
    paired = report["paired"]
    first, second = paired["accuracies"]
    return [
        f"The same class for {report['num_agreeing']:,} of {report['num_examples']:,} images of `{report['split']}`; "
        f"largest difference of a probability {report['largest_difference']:.2g}. Accuracy {second:.4f} against "
        f"{first:.4f} of the run ({paired.get('test', 'exact McNemar test')} p = {paired['p_value']:.3g}).",
        *(
            f"Batch of {rows}: median {times['p50']:.1f} ms, 90 % below {times['p90']:.1f} ms, "
            f"99 % below {times['p99']:.1f} ms, on the CPU that exported it."
            for rows, times in report["latency_ms"].items()
        ),
    ]
