"""Where the batch-norm layers that a config trains begin: at pretrained statistics, or at mean 0 and variance 1."""

from __future__ import annotations

from tl_dist.config import Config, registry


def fresh(cfg: Config) -> str | None:
    """What makes trained batch-norm layers begin without statistics; None where all of them have some, or none is."""
    if not registry.backbone(cfg.model.backbone).batch_norm or all(part == "head" for part in cfg.parts):
        return None
    if cfg.random_start:
        return "random weights"
    return f"layers reinitialized from {cfg.model.reinitialize!r}" if cfg.model.reinitialize else None


def explained(cfg: Config) -> str:
    """What `batch_norm: auto` is under `cfg`, and why."""
    if not registry.backbone(cfg.model.backbone).batch_norm:
        return f"{cfg.model.backbone} has no such layers"
    beginning = fresh(cfg)
    if beginning is None and cfg.model.prune:
        return "sync, since its statistics are those of layers with more channels"
    return (
        f"sync, since {beginning} hold no statistics" if beginning else "inference, by pretrained statistics"
    )
