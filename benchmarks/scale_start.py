"""What the start of a worker costs that shares a data set and a host with others.

The list of a data set: 20,000 images in 1,000 folders, by the worker that looks at each file and by one that reads what
that has found. And the start of eight workers on the cores of this machine, beside that of two.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.cli_start import whole_lines
from benchmarks.comparison import Comparison, in_turn
from tl_dist.config import DataConfig
from tl_dist.datasets import directory_cache
from tl_dist.datasets.division import open_splits

TL_DIST = str(Path(sys.executable).parent / "tl-dist")
FOLDERS, IMAGES = 1000, 20
CONFIG = """\
strategy: horovod
steps: 2
global_batch: 32
precision: float32
data: {name: synthetic, image_size: 32, test_fraction: 0}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: sgd, learning_rate: 1e-4}
report: {tensorboard: false}
runtime: {threads: 1}
"""


def comparisons() -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "data"
        for k in range(FOLDERS):
            folder = root / "train" / f"n{k:08d}"
            folder.mkdir(parents=True)
            for image in range(IMAGES):
                (folder / f"{image}.JPEG").write_bytes(b"x")
        time.sleep(directory_cache.SETTLED_S)  # what has just changed is not believed
        sides = {str(first): opened(root, first=first) for first in (True, False)}
        found = in_turn(sides, rounds=5)
    yield Comparison("scale_start[20,000 images]", "s", found["False"], "rank 0", found["True"], bar=0.6, at_most=True)
    eight, two = first_step(8), first_step(2)
    yield Comparison(
        "scale_start[8 workers]", "s", eight, "2 workers", two, bar=8 / 2, at_most=True,
        note=f"of tl_dist's tiny network, on {os.cpu_count()} cores",
    )  # fmt: skip


def opened(root: Path, *, first: bool) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        with directory_cache.kept(root.parent / "listings", str(root), writes=first, anew=first):
            open_splits(DataConfig(name="imagenet", path=str(root)))
        return time.perf_counter() - start

    return measure


def first_step(workers: int) -> float:
    """Seconds from the command to the report of the first step of a run that ends well."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "first.yaml").write_text(CONFIG)
        metrics = Path(directory) / "runs" / "first" / "metrics.jsonl"
        start = time.perf_counter()
        process = subprocess.Popen(
            [TL_DIST, "train", "first.yaml", "-n", str(workers)], cwd=directory, stdout=subprocess.DEVNULL
        )
        while not (metrics.exists() and any('"train"' in line for line in whole_lines(metrics))):
            if process.poll() not in (None, 0):
                raise RuntimeError(f"{workers} workers ended with {process.returncode}")
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        if process.wait():
            raise RuntimeError(f"{workers} workers ended with {process.returncode}")
    return seconds
