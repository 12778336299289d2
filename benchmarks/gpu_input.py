"""The same steps on one GPU from JPEG files and from images that are only made up: does reading keep up?"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.comparison import Comparison
from benchmarks.gpu_runs import SYNTHETIC, last_report, require_gpus, trained
from benchmarks.photographs import photographs, write_folder

NUMBER, ROWS, WAIT = 4096, 256, 0.03


def comparisons() -> Iterator[Comparison]:
    gpus = require_gpus()
    root = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    try:
        write_folder(root, photographs(NUMBER))
        read = last_report(trained(*COMMON, *from_files(root)))
        made_up = last_report(trained(*COMMON))
    finally:
        shutil.rmtree(root)
    waited = read["data_wait_share"]
    yield Comparison(
        "gpu_input[files, crop, flip]",
        "images/s",
        read["examples_per_s"],
        "synthetic",
        made_up["examples_per_s"],
        bar=0.95,
        note=f"{len(os.sched_getaffinity(0))} cores, {gpus} GPUs; it waits for data {waited:.1%} of the time",
    )
    yield Comparison("gpu_input[wait for data]", "of the time", waited, "limit", WAIT, bar=1.0, at_most=True)


COMMON = (
    *SYNTHETIC,
    "strategy=single",
    f"global_batch={ROWS}",
    "model.batch_norm=train",
    "precision=auto",
)


def from_files(root: Path) -> list[str]:
    """What reads the photographs instead of made-up images, as training on ImageNet does."""
    return ["data.name=image_folder", f"data.path={root}", "data.augment=[random_resized_crop, flip]"]
