"""The rules about what the figures of the validation split decide."""

from __future__ import annotations

from collections.abc import Iterator

from tl_dist.config import Config
from tl_dist.config.model_selection import FIGURES, SPLIT, figure_of, metrics_of
from tl_dist.config.problems import Broken
from tl_dist.config.registry import nearest


def deciding(cfg: Config) -> Iterator[Broken]:
    """Yield broken rules about metrics that decide; whether there is a validation split is known later."""
    metrics = metrics_of(cfg)
    for path, metric in metrics.items():
        yield from _metric(path, metric)
    best = cfg.checkpoint.best
    if best is None and cfg.checkpoint.average is not None:
        what = "checkpoint.average needs checkpoint.best, which says which weights are best."
        fix = "write 'best: {metric: validation.accuracy}' below 'checkpoint:', or remove 'average'."
        yield Broken(("checkpoint", "average"), what, fix)
    if best is not None and best.mode not in ("auto", FIGURES.get(figure_of(best.metric), best.mode)):
        what = f"mode '{best.mode}' would keep the weights with the worst {best.metric}."
        yield Broken(("checkpoint", "best", "mode"), what, "write 'mode: auto'.")
    if cfg.classifier.computed and metrics:
        path = next(iter(metrics))
        yield Broken(
            path[:-1],
            f"classifier '{cfg.classifier.name}' is computed in one step: {'.'.join(path[:-1])} has nothing to decide.",
            f"remove '{path[-2]}', or write 'name: head' below 'classifier:'.",
        )


def _metric(path: tuple[str, ...], metric: str) -> Iterator[Broken]:
    split, dot, figure = metric.rpartition(".")
    if dot and split != SPLIT:
        why = "the test split must not decide" if split == "test" else f"only the {SPLIT} split decides"
        what = f"{'.'.join(path)} is '{metric}', but {why}."
        yield Broken(path, what, f"write 'metric: {SPLIT}.{figure}'.")
    elif figure not in FIGURES:
        guess = "log_loss" if figure == "loss" else nearest(figure, list(FIGURES))
        fix = f"write 'metric: {SPLIT}.{guess}'." if guess else f"use one of {', '.join(FIGURES)}."
        yield Broken(path, f"{'.'.join(path)} '{metric}' is not a figure of an evaluation.", fix)
