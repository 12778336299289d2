"""ELPV as classes, as grades and as a number, on features of one network and on the same folds; labels against Keras.

Five folds of all cells, each held out once; nothing is chosen on them. Heads of one layer are trained alike but for the
loss; a logistic regression is computed, of two classes and of four grades, and a ridge regression of the probability
that a cell is defective. The distances of its answers from the truth are divided at random 25 times, into those that
make intervals and those that judge them.

With CIFAR-10 in the directory of TL_DIST_CIFAR10, images of four photographs each, whose labels are the classes in
them: a small network from random weights learns them in tl_dist and in plain Keras with `BinaryCrossentropy`, five
times.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.metrics import cohen_kappa_score, roc_auc_score

import tl_dist as tl
from benchmarks.cells import FEATURES
from benchmarks.cifar10 import VARIABLE
from benchmarks.comparison import Comparison
from benchmarks.vs_keras_accuracy import answer, compared, keras_script
from tl_dist.datasets.division import division, open_splits, pooled
from tl_dist.scores import conformal
from tl_dist.scores.predictions import Predictions
from tl_dist.tasks import ordinal, regression

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
NUMBER = ("task=regression",)
WAYS: Mapping[str, tuple[str, ...]] = {
    "two classes, logistic": COMPUTED,
    "grades, logistic": (*GRADED, *COMPUTED),
    "grades, softmax": (*GRADED, *TRAINED, "loss.name=cross_entropy"),
    "grades, corn": (*GRADED, *TRAINED, "loss.name=corn"),
    "grades, coral": (*GRADED, *TRAINED, "loss.name=coral"),
    "number, ridge": (*NUMBER, "classifier.name=ridge", "classifier.l2=auto"),
    "number, squared error": (*NUMBER, *TRAINED),
}
COVERAGE, DIVISIONS = 0.9, 25
COLLAGES = """\
task: multilabel
global_batch: 32
precision: float32
data: {name: csv, path: collages.csv, image_size: 64, label_columns: [LABELS]}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: adam, learning_rate: 3e-3}
report: {tensorboard: false}
"""
SEEDS, NUM_TRAIN, NUM_TEST, EPOCHS = 5, 3_000, 1_000, 12


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
    ours, trained = found["number, ridge"], found["number, squared error"]
    yield Comparison(
        "tasks[number]", "(ROC-AUC)", ours["auc"], "logistic of two classes", rival["auc"], bar=0.97,
        note=f"defective by the number; ridge: {ours['said']}; trained: {trained['said']}, AUC {trained['auc']:.4f}",
    )  # fmt: skip
    yield _coverage(ours["errors"])
    yield from _collages()


def _out_of_fold(directory: Path, way: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """Return figures over all cells, each predicted by the run of its fold."""
    config = directory / "cells.yaml"
    config.write_text(CELLS.replace("folds.json", str(directory / "folds.json")))
    if not (directory / "folds.json").exists():
        data = tl.load_config(config, *GRADED, "steps=1", "optimizer.learning_rate=1").data
        pool = pooled(open_splits(data.model_copy(update={"split": None, "test_fraction": 0.25}))[0])
        folds = division(pool, test=0.0, validation=0.0, folds=FOLDS, group=None, seed=0)
        (directory / "folds.json").write_text(json.dumps(folds))
    parts: list[Predictions] = []
    for fold in range(FOLDS):
        run = f"name={way.replace(', ', '-').replace(' ', '-')}-{fold}"
        cfg = tl.load_config(config, *settings, run, f"data.fold={fold}")
        parts.append(tl.train(cfg, runs=directory / "runs", here=True).predictions("test"))
    labels, probabilities = (
        np.concatenate([getattr(part, key) for part in parts]) for key in ("truth", "probabilities")
    )
    if way.startswith("number"):
        return _of_number(labels, probabilities)
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


def _of_number(truth: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Return figures of the number, and of what it says of classes and grades."""
    judged, thirds = regression.figures(truth, values), np.rint(3 * np.clip(values, 0, 1)).astype(int)[:, 0]
    kappa = cohen_kappa_score(np.rint(3 * truth[:, 0]).astype(int), thirds, weights="quadratic")
    low, high = judged["rmse_interval"]
    return {
        "auc": float(roc_auc_score(truth[:, 0] > 0.5, values[:, 0])),
        "errors": np.abs(values - truth),
        "said": f"RMSE {judged['rmse']:.4f} ({low:.4f} to {high:.4f}), R2 {judged['r2']:.4f}, Spearman "
        f"{judged['spearman']:.4f}, kappa of the nearest grade {kappa:.4f}, accuracy from 1/2 on "
        f"{((values > 0.5) == (truth > 0.5)).mean():.4f}",
    }


def _coverage(errors: np.ndarray) -> Comparison:
    """Compare how often intervals hold the truth with how often they say that they do."""
    held = []
    for seed in range(DIVISIONS):
        order = np.random.default_rng(seed).permutation(len(errors))
        kept, judged = np.split(errors[order], 2)
        held.append(float((judged <= conformal.half_widths(kept, COVERAGE)).mean()))
    spread = float(np.sqrt(2 * COVERAGE * (1 - COVERAGE) / len(judged)))  # of one division: both halves are draws
    inside = sum(abs(share - COVERAGE) <= 1.96 * spread for share in held)
    return Comparison(
        "tasks[coverage]", "(share)", float(np.mean(held)), "asked for", COVERAGE, bar=(COVERAGE - spread) / COVERAGE,
        note=f"{inside} of {DIVISIONS} divisions within 95 % binomial intervals, {min(held):.3f} to {max(held):.3f}",
    )  # fmt: skip


def _collages() -> Iterator[Comparison]:
    if VARIABLE not in os.environ:
        return
    photographs = Path(os.environ[VARIABLE]).absolute()
    names = sorted(folder.name for folder in (photographs / "train").iterdir())
    with tempfile.TemporaryDirectory(prefix="tl-dist-benchmark-") as name:
        folders = [_collage(Path(name) / str(seed), photographs, names, seed) for seed in range(SEEDS)]
        script = ("--epochs", str(EPOCHS), "--learning-rate", "3e-3")
        rival = json.loads(answer(keras_script("collages.py", *map(str, folders), *script)))
        ours = []
        for seed, folder in enumerate(folders):
            config = folder / "collages.yaml"
            config.write_text(
                COLLAGES.replace("LABELS", ", ".join(names)).replace("collages.csv", f"{folder}/collages.csv")
            )
            cfg = tl.load_config(config, f"seed={seed}", f"epochs={EPOCHS}")
            ours.append(tl.train(cfg, runs=folder / "runs", here=True).scores["test"]["map"])
    yield replace(compared("labels", ours, rival, NUM_TEST / NUM_TRAIN), name="tasks[labels]", unit="(mAP)")


def _collage(directory: Path, photographs: Path, names: Sequence[str], seed: int) -> Path:
    """Write images of four photographs each and their table; test images are made of test photographs."""
    draws, rows = np.random.default_rng(seed), [",".join(["path", "split", *names])]
    (directory / "images").mkdir(parents=True)
    for split, num in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        files = [sorted((photographs / split / name).iterdir()) for name in names]
        for k in range(num):
            classes = draws.integers(len(names), size=4)
            tiles = [np.asarray(Image.open(files[c][draws.integers(len(files[c]))])) for c in classes]
            path = f"images/{split}-{k:05}.png"
            rows_of_two = [np.concatenate(tiles[at : at + 2], axis=1) for at in (0, 2)]
            Image.fromarray(np.concatenate(rows_of_two)).save(directory / path)
            rows.append(",".join([path, split, *(str(int(c in classes)) for c in range(len(names)))]))
    (directory / "collages.csv").write_text("\n".join(rows) + "\n")
    return directory
