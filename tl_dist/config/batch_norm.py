"""Whether trained batch-norm layers start from pretrained statistics, or from mean 0 and variance 1."""

from tl_dist.config import Config, registry


def fresh(cfg: Config) -> str | None:
    """Return why trained batch-norm layers start without statistics; None if all have some, or none is trained."""
    if not registry.backbone(cfg.network).batch_norm or all(part == "head" for part in cfg.parts):
        return None
    if cfg.random_start:
        return "random weights"
    return f"layers reinitialized from {cfg.model.reinitialize!r}" if cfg.model.reinitialize else None


def explained(cfg: Config) -> str:
    """Return what `batch_norm: auto` means for `cfg`, and why."""
    if not registry.backbone(cfg.network).batch_norm:
        return f"{cfg.model.backbone} has no such layers"
    beginning = fresh(cfg)
    if beginning is None and cfg.model.prune:
        return "sync, since its statistics belong to layers with more channels"
    return f"sync, since {beginning} hold no statistics" if beginning else "inference, by pretrained statistics"
