"""The configs of a source task, which is trained first, and of the run after it."""

from __future__ import annotations

from pathlib import Path

from tl_dist.config import ClassifierConfig, Config, FeaturesConfig, LossConfig, SourceConfig


def of_source(cfg: Config) -> Config | None:
    """Return the config of the source task that `cfg` trains first, or None."""
    source = cfg.source
    if source is None or source.data is None:
        return None
    optimizer = source.optimizer or cfg.optimizer.model_copy(update={"l2_sp": 0.0, "layer_decay": 1.0})
    model = {"train_from": source.train_from, "reinitialize": None, "layers": (), "prune": 0.0}
    return cfg.model_copy(
        update={
            "name": source.name or f"{cfg.name}-source",
            "data": source.data,
            "epochs": source.epochs,
            "steps": source.steps,
            "model": cfg.model.model_copy(update=model),
            "classifier": ClassifierConfig(),
            "features": FeaturesConfig(),
            "loss": LossConfig(),
            "optimizer": optimizer,
            "stages": (),
            "early_stopping": None,
            "checkpoint": cfg.checkpoint.model_copy(update={"best": None, "average": None}),
            "source": None,
            "distill": None,
            "recipe": None,
            "evaluation": cfg.evaluation.model_copy(update={"views": ()}),
            "runtime": cfg.runtime.model_copy(update={"prefix_cache": "off"}),
        }
    )


def after_source(cfg: Config, run: Path) -> Config:
    """Return `cfg` with the trained run of its source task, `run`, as its source."""
    allowed = cfg.source is not None and cfg.source.allow_seen
    source = SourceConfig(run=str(run.absolute()), allow_seen=allowed)
    return cfg.model_copy(update={"source": source})
