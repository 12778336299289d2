"""What the validation split of a run can decide, known once its data is opened."""

from __future__ import annotations

import numpy as np

from tl_dist.config import Config
from tl_dist.config.model_selection import SPLIT, figure_of, metrics_of
from tl_dist.datasets import Splits, pool_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.training.evaluation import MAX_LOGITS


def refuse(cfg: Config, splits: Splits) -> None:
    """Refuses each metric that decides something where the validation split cannot tell it, or must not."""
    for path, metric in metrics_of(cfg).items():
        problem = _problem(cfg, splits, figure_of(metric))
        if problem is not None:
            what, fix = problem
            raise Refusal(f"{'.'.join(path)} is '{metric}', but {what}.", fix=fix, code=ExitCode.USAGE)


def _problem(cfg: Config, splits: Splits, figure: str) -> tuple[str, str] | None:
    source, test = splits.get(SPLIT), splits.get("test")
    if source is None:
        what = f"'{cfg.data.name}' has no validation split under this config"
        return what, "write 'validation_fraction: 0.1' below 'data:'."
    if cfg.data.folds is not None and test is not None and pool_of(test)[0] is not pool_of(source)[0]:
        # Its figures are those of the fold: to choose by them would make them too good.
        what = "the validation split is the fold that is held out, since the test split is official"
        return what, "remove it, or 'folds' and 'fold'."
    if figure == "roc_auc" and len(np.unique(source.labels)) < source.num_classes:
        return "a class has no validation example", f"write 'metric: {SPLIT}.macro_f1'."
    if figure != "accuracy" and source.num_examples * source.num_classes > MAX_LOGITS:
        what = f"of {source.num_examples:,} examples of {source.num_classes:,} classes only the accuracy is computed"
        return what, f"write 'metric: {SPLIT}.accuracy'."
    return None
