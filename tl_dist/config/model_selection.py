"""Which figures of the validation split decide something in a run. Imports only the schema."""

from collections.abc import Mapping
from typing import Any

from tl_dist.config import Config

_OF_CLASSES = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "mcc", "roc_auc", "log_loss", "ece")
OF_TASK: Mapping[str, tuple[str, ...]] = {
    "classification": _OF_CLASSES,
    "ordinal": (*_OF_CLASSES, "quadratic_kappa", "mae"),
    "multilabel": ("map", "accuracy", "micro_f1", "macro_f1", "roc_auc", "log_loss"),
    "regression": ("rmse", "mae", "r2", "spearman"),
}
"""the figures that may decide, which are all single numbers of a task's figures"""
_SMALLER = ("log_loss", "ece", "mae", "rmse")
FIGURES = {name: "min" if name in _SMALLER else "max" for names in OF_TASK.values() for name in names}
"""which value of each is better"""

RESERVED = ("own", "main", "interval", "confusion", "threshold", "calibration", "decision", "targets", "labels", "loss")
"""further names in the figures of an evaluation"""

SPLIT = "validation"
"""the split that decides"""


def figure_of(metric: str) -> str:
    """Return the name of a metric's figure; metrics are written as validation.macro_f1 or macro_f1."""
    return metric.removeprefix(f"{SPLIT}.")


def metrics_of(cfg: Config) -> dict[tuple[str, ...], str]:
    """Return the metrics that decide, by the config key that names each; empty if none does."""
    sections: dict[tuple[str, ...], Any] = {
        ("checkpoint", "best"): cfg.checkpoint.best,
        ("early_stopping",): cfg.early_stopping,
        ("optimizer", "schedule"): cfg.optimizer.schedule,
        **{("stages", str(number), "schedule"): stage.schedule for number, stage in enumerate(cfg.stages)},
    }
    metrics = {(*path, "metric"): section.metric for path, section in sections.items() if section is not None}
    return {path: metric for path, metric in metrics.items() if metric is not None}
