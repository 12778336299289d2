"""The configs of a source task, which is trained first, and of the run after it."""

from pathlib import Path
from typing import Any

from tl_dist.config import Config, SourceConfig

_OF_THE_RUN = ("task", "classifier", "features", "loss", "stages", "early_stopping", "source", "distill", "recipe")
"""keys that the source task does not share"""


def of_source(cfg: Config) -> Config | None:
    """Return the config of the source task that `cfg` trains first, or None."""
    source = cfg.source
    if source is None or source.data is None:
        return None
    optimizer = source.optimizer or cfg.optimizer.model_copy(update={"l2_sp": 0.0, "layer_decay": 1.0})
    runtime: dict[str, Any] = {"prefix_cache": "off"}
    model: dict[str, Any] = {
        "train_from": source.train_from,
        "reinitialize": None,
        "layers": (),
        "prune": 0.0,
        "adapt": "all",
    }
    if source.train_from == "head":  # these would have nothing to act on
        model["drop_path"], runtime["recompute"] = 0.0, False
    changes = {
        **{key: Config.model_fields[key].default for key in _OF_THE_RUN},
        **{key: getattr(source, key) for key in ("data", "epochs", "steps")},
        "name": source.name or f"{cfg.name}-source",
        "model": cfg.model.model_copy(update=model),
        "optimizer": optimizer,
        "checkpoint": cfg.checkpoint.model_copy(update={"best": None, "average": None}),
        "evaluation": cfg.evaluation.model_copy(update={"views": ()}),
        "runtime": cfg.runtime.model_copy(update=runtime),
    }
    return cfg.model_copy(update=changes)


def after_source(cfg: Config, run: Path) -> Config:
    """Return `cfg` with the trained run of its source task, `run`, as its source."""
    allowed = cfg.source is not None and cfg.source.allow_seen
    source = SourceConfig(run=str(run.absolute()), allow_seen=allowed)
    return cfg.model_copy(update={"source": source})
