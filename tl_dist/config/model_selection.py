"""Which figures of the validation split decide something in a run. Imports only the schema."""

from __future__ import annotations

from tl_dist.config import Config

FIGURES = {
    "accuracy": "max",
    "balanced_accuracy": "max",
    "macro_f1": "max",
    "weighted_f1": "max",
    "mcc": "max",
    "roc_auc": "max",
    "log_loss": "min",
    "ece": "min",
}
"""the figures that may decide, which are all single numbers in tl_dist/scores/figures.py, and which value is better"""

SPLIT = "validation"
"""the split that decides"""


def figure_of(metric: str) -> str:
    """Return the name of a metric's figure; metrics are written as validation.macro_f1 or macro_f1."""
    return metric.removeprefix(f"{SPLIT}.")


def metrics_of(cfg: Config) -> dict[tuple[str, ...], str]:
    """Return the metrics that decide, by the config key that names each; empty if none does."""
    best, stopping = cfg.checkpoint.best, cfg.early_stopping
    metrics: dict[tuple[str, ...], str | None] = {
        ("checkpoint", "best", "metric"): None if best is None else best.metric,
        ("early_stopping", "metric"): None if stopping is None else stopping.metric,
        ("optimizer", "schedule", "metric"): cfg.optimizer.schedule.metric,
        **{
            ("stages", str(number), "schedule", "metric"): stage.schedule.metric
            for number, stage in enumerate(cfg.stages)
            if stage.schedule is not None
        },
    }
    return {path: metric for path, metric in metrics.items() if metric is not None}
