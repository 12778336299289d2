"""ELPV as classes and as grades: what an order of the classes adds, on features of one network and on the same folds.

Five folds of all cells, each held out once; nothing is chosen on them. Heads of one layer are trained alike but for the
loss; a logistic regression is computed, of two classes and of four grades.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

import tl_dist as tl
from benchmarks.cells import FEATURES
from benchmarks.comparison import Comparison
from tl_dist.datasets.division import division, open_splits, pooled
from tl_dist.tasks import ordinal

FOLDS = 5
CELLS = f"""\
data: {{name: elpv, image_size: 96, split: folds.json}}
{FEATURES}\
report: {{tensorboard: false}}
"""
GRADED = ("data.grades=[0, 0.33, 0.67, 1]", "task=ordinal")
TRAINED = (
    "optimizer.name=adam", "optimizer.learning_rate=0.001", "epochs=30", "global_batch=64", "runtime.prefix_cache=on",
)  # fmt: skip
COMPUTED = ("classifier.name=logistic", "loss.name=cross_entropy")
WAYS: Mapping[str, tuple[str, ...]] = {
    "two classes, logistic": COMPUTED,
    "grades, logistic": (*GRADED, *COMPUTED),
    "grades, softmax": (*GRADED, *TRAINED, "loss.name=cross_entropy"),
    "grades, corn": (*GRADED, *TRAINED, "loss.name=corn"),
    "grades, coral": (*GRADED, *TRAINED, "loss.name=coral"),
}


def comparisons() -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory(prefix="tl-dist-benchmark-") as name:
        directory = Path(name)
        found = {way: _out_of_fold(directory, way, settings) for way, settings in WAYS.items()}
    for of_order in ("grades, corn", "grades, coral"):
        ours, rival = found[of_order], found["grades, softmax"]
        yield Comparison(
            f"tasks[{of_order.split()[1]}]", "(quadratic kappa)", ours["kappa"], "softmax", rival["kappa"], bar=0.97,
            note=f"{ours['said']}; softmax: {rival['said']}; logistic: {found['grades, logistic']['said']}",
        )  # fmt: skip
    ours, rival = found["grades, corn"], found["two classes, logistic"]
    yield Comparison(
        "tasks[defective]", "(ROC-AUC)", ours["auc"], "logistic of two classes", rival["auc"], bar=0.97,
        note="defective from the probabilities of grades 0.67 and 1; "
        f"grades by logistic {found['grades, logistic']['auc']:.4f}, coral {found['grades, coral']['auc']:.4f}",
    )  # fmt: skip


def _out_of_fold(directory: Path, way: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """Return figures over all cells, each predicted by the run of its fold."""
    config = directory / "cells.yaml"
    config.write_text(CELLS.replace("folds.json", str(directory / "folds.json")))
    if not (directory / "folds.json").exists():
        data = tl.load_config(config, *GRADED, "steps=1", "optimizer.learning_rate=1").data
        pool = pooled(open_splits(data.model_copy(update={"split": None, "test_fraction": 0.25}))[0])
        folds = division(pool, test=0.0, validation=0.0, folds=FOLDS, group=None, seed=0)
        (directory / "folds.json").write_text(json.dumps(folds))
    parts = []
    for fold in range(FOLDS):
        run = f"name={way.replace(', ', '-').replace(' ', '-')}-{fold}"
        cfg = tl.load_config(config, *settings, run, f"data.fold={fold}")
        parts.append(tl.train(cfg, runs=directory / "runs", here=True).predictions("test"))
    labels, probabilities = (
        np.concatenate([getattr(part, key) for part in parts]) for key in ("labels", "probabilities")
    )
    defective = probabilities[:, probabilities.shape[1] // 2 :].sum(axis=1)
    figures: dict[str, Any] = {"auc": float(roc_auc_score(labels >= probabilities.shape[1] // 2, defective))}
    if "task=ordinal" in settings:
        judged = ordinal.figures(labels, probabilities)
        low, high = judged["quadratic_kappa_interval"]
        figures["kappa"] = judged["quadratic_kappa"]
        figures["said"] = (
            f"kappa {judged['quadratic_kappa']:.4f} ({low:.4f} to {high:.4f}), MAE {judged['mae']:.4f}, "
            f"accuracy {judged['accuracy']:.4f}, log loss {judged['log_loss']:.4f}"
        )
    return figures
