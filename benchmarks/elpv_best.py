"""ELPV, fine-tuned: configs/elpv_best.yaml on the published 75/25 protocol, and out of fold on all cells. Takes hours.

The first run computes the frozen part of all cells in all views; the folds of the cross-validation find it kept.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.comparison import Comparison

CONFIG = Path(__file__).parents[1] / "configs" / "elpv_best.yaml"
PUBLISHED = 0.8842
"""VGG-19 fine-tuned on a GPU: Deitsch et al. 2019 (arXiv 1807.02894)"""
FEATURE_BASED = 0.8644
"""mean accuracy of configs/elpv_features.yaml, which trains no backbone"""
MINUTES = 90.0


def comparisons() -> Iterator[Comparison]:
    from benchmarks.cells import tl_dist

    directory = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    try:
        minutes = tl_dist("train", str(CONFIG), cwd=directory) / 60
        test = _done(directory / "runs" / "elpv_best")["figures"]["test"]
        low, high = test["interval"]
        yield Comparison(
            "elpv_best[75/25]", "(accuracy)", test["accuracy"], "VGG-19, published", PUBLISHED, bar=1.0,
            note=f"{test['num_correct']} of {test['num_examples']}; one split: "
            f"95 % interval {low:.4f} to {high:.4f}",
        )  # fmt: skip
        yield Comparison(
            "elpv_best[time]", "min", minutes, "allowed", MINUTES, bar=1.0, at_most=True,
            note="one command, extraction and evaluation included",
        )  # fmt: skip
        tl_dist("cv", str(CONFIG), "--folds", "5", "--seeds", "1", cwd=directory)
        found = _done(directory / "runs" / "elpv_best-cv")["cross_validation"]
        low, high = found["interval"]
        yield Comparison(
            "elpv_best[out of fold]", "(accuracy)", found["accuracy"], "feature-based", FEATURE_BASED, bar=1.0,
            note=f"{found['num_examples']:,} cells; 95 % interval {low:.4f} to {high:.4f} (Nadeau and Bengio); "
            f"folds {[round(value, 4) for value in found['fold_accuracies'][0]]}",
        )  # fmt: skip
    finally:
        shutil.rmtree(directory)


def _done(run: Path) -> dict:
    return dict(json.loads((run / "DONE").read_text()))
