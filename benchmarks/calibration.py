"""ELPV: how much a temperature helps, whether conformal sets cover, and whether other images are told apart.

A head on a frozen VGG16, trained for long enough to be too sure. Validation and test images were both held out from
training, so they are divided again 25 times into those that are fitted and those that are measured.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import betabinom
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import tl_dist as tl
from benchmarks.cells import FEATURES
from benchmarks.comparison import Comparison
from tl_dist.datasets import Source
from tl_dist.datasets.division import open_splits
from tl_dist.datasets.files import unlabelled
from tl_dist.runs.directory import RunDir
from tl_dist.scores import calibration, conformal, figures, neighbours
from tl_dist.trainer.load_model import Loaded, loaded, process_as_it_was
from tl_dist.trainer.predict import predict

CELLS = f"""\
data: {{name: elpv, image_size: 96, validation_fraction: 0.2}}
{FEATURES}\
  hidden: 256
optimizer: {{name: adam, learning_rate: 0.001}}
epochs: 40
runtime: {{prefix_cache: "on"}}
report: {{tensorboard: false}}
"""
DIGITS = """\
precision: float32
data: {name: image_folder, path: seen, image_size: 32, validation_fraction: 0.2}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: adam, learning_rate: 0.003}
epochs: 20
report: {tensorboard: false}
"""
SPLITS = 25
COVERAGE = 0.95


def comparisons() -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory(prefix="tl-dist-benchmark-") as name, process_as_it_was():
        directory = Path(name)
        digits = drawn_digits(directory)
        model, kept = trained(directory, "cells", CELLS)
        held_out = open_splits(model.cfg.data)[0]
        logits, labels, types = {}, {}, {}
        wide = {}
        for split in ("validation", "test"):
            source = held_out[split]
            logits[split], wide[split] = of(model, source)
            labels[split] = np.asarray(source.labels, np.int32)
            types[split] = np.array(source.annotations.types)
        found = calibration.before_and_after(labels["test"], logits["test"], kept.temperature)
        yield Comparison(
            "calibration[ECE]", "", found["after"]["ece"], "bar", 0.03, bar=1.0, at_most=True,
            note=f"of {len(labels['test'])} test cells; as trained {found['before']['ece']:.4f}; temperature "
            f"{kept.temperature:.3f}; log loss {found['before']['log_loss']:.4f} to {found['after']['log_loss']:.4f}; "
            f"{by_chance(logits['test'] / kept.temperature):.4f} if the probabilities were right, of so few images",
        )  # fmt: skip
        every = [np.concatenate([part["validation"], part["test"]]) for part in (logits, labels, types)]
        yield from over_splits(*every)
        yield from strange("digits", model, wide["test"], of(model, digits["all"])[1])
        model, _ = trained(directory, "digits", DIGITS)
        seen = of(model, open_splits(model.cfg.data)[0]["test"])[1]
        yield from strange("held-out classes", model, seen, of(model, digits["unseen"])[1])


def trained(directory: Path, name: str, config: str) -> tuple[Loaded, calibration.Calibration]:
    """The model of a config, calibrated."""
    file = directory / f"{name}.yaml"
    file.write_text(config.replace("path: seen", f"path: {directory / 'seen'}"))
    run = tl.train(tl.load_config(file), runs=directory / "runs", here=True)
    kept = run.calibrate(unknown=True)
    return loaded(RunDir(run.path), cores=None), kept


def of(model: Loaded, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Logits and features."""
    found = list(predict(model, source, features=True))
    return np.concatenate([one.logits for one in found]), np.concatenate([one.features for one in found])


def by_chance(logits: np.ndarray) -> float:
    """The mean ECE of as many images whose labels are drawn from these very probabilities."""
    p, rng = figures.softmax(logits), np.random.default_rng(0)
    errors = []
    for _ in range(200):
        labels = (p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1)
        errors.append(figures.calibration_error(p.max(axis=1), p.argmax(axis=1) == labels))
    return float(np.mean(errors))


def over_splits(logits: np.ndarray, labels: np.ndarray, types: np.ndarray) -> Iterator[Comparison]:
    """25 divisions of the held-out images into halves: one is fitted, the other measured."""
    errors, inside, covered, sizes = [], 0, [], []
    of_type: dict[str, list[bool]] = {name: [] for name in np.unique(types)}
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(labels))
        fit, test = order[: len(order) // 2], order[len(order) // 2 :]
        # Each half at the temperature of the other: no image is measured by what was fitted to it.
        p = np.empty(logits.shape)
        for one, other in ((test, fit), (fit, test)):
            temperature = calibration.fitted(labels[one], logits[one])
            p[other] = figures.softmax(logits[other] / temperature)
        errors.append(figures.calibration_error(p.max(axis=1), p.argmax(axis=1) == labels))
        p = figures.softmax(logits / calibration.fitted(labels[fit], logits[fit])).astype(np.float32)
        of_true = p[np.arange(len(p)), labels]
        least = conformal.least_probability(of_true[fit], COVERAGE)
        in_set = conformal.sets(p[test], least)
        hits = of_true[test] >= least
        covered.append(hits.mean())
        sizes.append(in_set.mean())
        inside += within(int(hits.sum()), len(fit), len(test))
        for name, results in of_type.items():
            mine, theirs = fit[types[fit] == name], test[types[test] == name]
            hits = of_true[theirs] >= conformal.least_probability(of_true[mine], COVERAGE)
            results.append(within(int(hits.sum()), len(mine), len(theirs)))
    yield Comparison(
        "calibration[mean ECE]", "", float(np.mean(errors)), "bar", 0.03, bar=1.0, at_most=True,
        note=f"over {SPLITS} divisions of {len(labels)} held-out cells, each half at the temperature of the other: "
        f"{min(errors):.4f} to {max(errors):.4f}; as trained {calibration.quality(labels, logits, 1.0)['ece']:.4f}; "
        f"{by_chance(np.log(p)):.4f} if the probabilities were right, of so few images",
    )  # fmt: skip
    # Of 25 right ones fewer than 21 are inside of a 95 % interval once in 140 times.
    yield Comparison(
        "calibration[coverage]", "divisions inside", inside, "divisions", SPLITS, bar=21 / SPLITS,
        note=f"of the 95 % interval of the beta-binomial; mean coverage {np.mean(covered):.4f} for {COVERAGE}, sets of "
        f"{np.mean(sizes):.3f} classes; by type inside: "
        + ", ".join(f"{name} {sum(results)}" for name, results in of_type.items()),
    )  # fmt: skip


def within(hits: int, num_fitted: int, num: int) -> bool:
    """Whether so many are covered as a right threshold would cover in 95 % of all cases."""
    rank = num_fitted + 1 - int(np.ceil(round((num_fitted + 1) * COVERAGE, 9)))
    low, high = betabinom(num, num_fitted + 1 - rank, rank).interval(0.95)
    return bool(low <= hits <= high)


def strange(name: str, model: Loaded, known: np.ndarray, other: np.ndarray) -> Iterator[Comparison]:
    """Whether other images are told apart from those of the test split."""
    kept: Any = neighbours.of_checkpoint(model.run.path, model.sha256)
    distances = [kept.distances(one, model.cfg.evaluation_batch) for one in (known, other)]
    p = [conformal.p_values(one, kept.of_known) for one in distances]
    area = roc_auc_score(np.repeat([0, 1], [len(known), len(other)]), np.concatenate(distances))
    yield Comparison(
        f"calibration[unknown: {name}]", "AUROC", float(area), "chance", 0.5, bar=1.6,
        note=f"at a false-alarm rate of 0.05 {np.mean(p[0] <= 0.05):.3f} of {len(known)} test images are flagged, and "
        f"{np.mean(p[1] <= 0.05):.3f} of {len(other)} others",
    )  # fmt: skip


def drawn_digits(directory: Path) -> dict[str, Source]:
    """The digits as files: 0 to 7 in `seen`, 8 and 9 elsewhere; what may be asked of them."""
    found = load_digits()
    paths: dict[str, list[str]] = {"seen": [], "unseen": []}
    for k, (image, label) in enumerate(zip(found.images, found.target, strict=True)):
        kind = "seen" if label < 8 else "unseen"
        file = directory / kind / str(label) / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype(np.uint8)).resize((32, 32)).save(file)
        paths[kind].append(str(file))
    return {
        "all": unlabelled([*paths["seen"][:200], *paths["unseen"][:50]], ("digit",)),
        "unseen": unlabelled(paths["unseen"], ("digit",)),
    }


if __name__ == "__main__":
    for comparison in comparisons():
        print(comparison)
