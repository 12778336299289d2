"""Write the MODEL_CARD.md of an export, in the sections of Mitchell et al. (2019, arXiv 1810.03993).

Its front matter is what model hubs read. The card is meant to be published: a local path is reduced to its last name,
and text of others, such as the name of a class, is escaped so that neither Markdown nor a terminal interprets it.
"""

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from tl_dist import tasks
from tl_dist.config import registry
from tl_dist.models.export import FORMATS
from tl_dist.refusal import printable, shortened
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import split_ids
from tl_dist.scores.text import FIGURES, interval, summary
from tl_dist.tools.export import agreement
from tl_dist.trainer.load_model import Restored

MAX_NAMED = 50  # classes
TEXT = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")


def text(run: RunDir, own: Restored, report: Mapping[str, Any]) -> str:
    """Return the card: what the model is, its training data and its figures, and what is not known about it."""
    cfg, identity = own.config, run.read_identity() or {}
    figures = {k: v for k, v in (run.done or {}).get("figures", {}).items() if k in ("test", "validation")}
    named = ", ".join(_plain(shortened(name, 100)) for name in own.class_names[:MAX_NAMED])
    more = len(own.class_names) - MAX_NAMED
    origin = f"weights '{_name(cfg.model.weights)}'"
    if cfg.source:
        origin = f"the weights of run '{_name(cfg.source.run)}'"
    if cfg.model.prune:
        origin += f" without {cfg.model.prune:g} of the channels of each convolution"
    if identity.get("weights_sha256"):
        origin += f" (sha256 {_plain(identity['weights_sha256'])})"
    calibrated = (
        f"Probabilities are calibrated: the logits are divided by {own.temperature:.4g}, which was fitted on the "
        "validation split (temperature scaling, Guo et al. 2017); the figures below were taken before.\n\n"
        if own.temperature is not None
        else ""
    )
    decision = (
        f"Classes are chosen by the rule of `classes.json`, not by the highest probability: {_plain(own.decision.aim)} "
        "(chosen on the validation split).\n\n"
        if own.decision is not None
        else ""
    )
    ids_of = split_ids(run) if (run.path / "split.json").exists() else {}
    data = (f"{_plain(name)} {_code(str(value)[:16])}" for name, value in identity.get("data", {}).items())
    config = yaml.safe_dump(_without_place(cfg.model_dump(mode="json")), sort_keys=False)
    config = printable(config, lines=True)
    words = tasks.of(cfg).WORDS
    evaluations = [_evaluation(split, split_figures) for split, split_figures in figures.items()]
    return TEXT.format(
        **{key: report[key] for key in ("file", "to", "numbers")},
        front=yaml.safe_dump(_front_matter(own, figures, report), sort_keys=False),
        name=_plain(run.name),
        model=words["model"].format(num=len(own.class_names)),
        output=words["output"],
        uses=words["uses"],
        named=f"{named} and {more} more" if more > 0 else named,
        backbone=_plain(registry.without_folder(cfg.model.backbone)),
        origin=origin,
        train_from=_code(cfg.model.train_from),
        taught=f", taught by run '{_name(cfg.distill.teacher)}'" if cfg.distill else "",
        run=_code(run.name),
        step=own.checkpoint.step,
        num_parameters=own.model.count_params(),
        precision=identity.get("precision", "float32"),
        calibrated=calibrated,
        decision=decision,
        megabytes=report["bytes"] / 1e6,
        size=own.model.input_shape[1],
        splits="".join(f"{_code(split)}: {len(ids):,} images.\n\n" for split, ids in ids_of.items()),
        data=_code(cfg.data.name),
        fingerprints=", ".join(data),
        evaluation="\n\n".join(evaluations) or "The run was not evaluated at its end.",
        agreement="\n\n".join(_agreement(report)),
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", config)), default=0)),
        config=config,
        versions=", ".join(f"{name} {number}" for name, number in report["versions"].items()),
    )


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


def _name(path: str | None) -> str:
    return _plain(_without_place(path or ""))


def _front_matter(own: Restored, figures: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    name = own.config.data.name
    kind = tasks.of(own.config).WORDS["hub"]
    results = [
        {
            "task": {"type": kind},
            "dataset": {"name": name, "type": name, "split": split},
            "metrics": [{"type": (main := _main(split_figures)), "value": round(split_figures[main], 6)}],
        }
        for split, split_figures in figures.items()
    ]
    return {
        "pipeline_tag": kind,
        "library_name": FORMATS[report["to"]].library,
        "tags": ["tl_dist", registry.without_folder(own.config.model.backbone)],
        "model-index": [{"name": own.config.name, "results": results}],
    }


def _main(figures: Mapping[str, Any]) -> str:
    return str(figures.get("main", "accuracy"))


def _evaluation(split: str, figures: Mapping[str, Any]) -> str:
    main = _main(figures)
    line = f"{_code(split)}: {FIGURES.get(main, main)} {figures[main]:.4f}"
    if ends := figures.get("interval" if main == "accuracy" else f"{main}_interval"):
        line += f", {interval(ends, figures.get('interval_by', 'Wilson' if main == 'accuracy' else 'bootstrap'))}"
    return f"{line} | {summary(figures)}."


def _agreement(report: Mapping[str, Any]) -> Iterator[str]:
    if "split" not in report:
        yield "Not compared with the run."
        return
    yield from agreement(report)
    for rows, times in report["latency_ms"].items():
        yield (
            f"Batch of {rows}: median {times['p50']:.1f} ms, 90 % below {times['p90']:.1f} ms, "
            f"99 % below {times['p99']:.1f} ms, on the CPU that exported it."
        )
