"""ResNet-50 at 224 px on one GPU, 256 rows a step: `tl-dist train` against `model.fit`, which XLA compiles.

`python -m benchmarks.gpu_step PRECISION BATCH_NORM` is the other side: it prints its images a second.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.comparison import Comparison, in_turn
from benchmarks.gpu_runs import ROOT, SYNTHETIC, require_gpus, speed

ROWS, STEPS = 256, 100
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
BARS = {"true": 1.0, "false": 0.6}
"""of the images a second of `fit`, with XLA and without"""
XLA_GAIN = 1.5
LEAST = {"H100": 2400, "A100": 2000}
"""images a second in bfloat16: NVIDIA publishes 2,375 for an A100, of a TensorFlow and a loop of its own"""


def comparisons() -> Iterator[Comparison]:
    require_gpus()
    for precision in PRECISIONS:
        for batch_norm in ("inference", "train"):
            sides: dict[str, Callable[[], float]] = {
                f"xla={xla}": lambda precision=precision, batch_norm=batch_norm, xla=xla: speed(
                    *overrides(precision, batch_norm, xla)
                )
                for xla in BARS
            }
            sides["fit"] = lambda precision=precision, batch_norm=batch_norm: by_fit(precision, batch_norm)
            found = in_turn(sides, rounds=2)
            for xla, bar in BARS.items():
                name = f"gpu_step[{precision}, {batch_norm}, xla={xla}]"
                yield Comparison(name, "images/s", found[f"xla={xla}"], "model.fit", found["fit"], bar=bar)
            if (precision, batch_norm) != ("mixed_bfloat16", "inference"):
                continue
            on, off = found["xla=true"], found["xla=false"]
            yield Comparison("gpu_step[xla]", "images/s", on, "without", off, bar=XLA_GAIN)
            card = name_of_card()
            for kind in (kind for kind in LEAST if kind in card):
                yield Comparison(f"gpu_step[{card}]", "images/s", on, "least", LEAST[kind], bar=1.0)


def name_of_card() -> str:
    """That of the first GPU."""
    asked = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def overrides(precision: str, batch_norm: str, xla: str) -> list[str]:
    """What one side of a row is trained with."""
    return [
        *SYNTHETIC,
        "strategy=single",
        f"global_batch={ROWS}",
        f"precision={precision}",
        f"model.batch_norm={batch_norm}",
        f"runtime.xla={xla}",
    ]


def by_fit(precision: str, batch_norm: str) -> float:
    """The other side, in a process of its own: neither keeps the other's memory."""
    argv = [sys.executable, "-m", "benchmarks.gpu_step", precision, batch_norm]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=True)
    return float(done.stdout.split()[-1])


def fit(precision: str, batch_norm: str, rows: int = ROWS, steps: int = STEPS, size: int = 224) -> float:
    """Images a second of Keras's own loop, on images that lie in memory."""
    import time

    import keras
    import numpy as np
    import tensorflow as tf

    keras.config.set_dtype_policy(precision)
    net = keras.applications.ResNet50(
        weights=None, input_shape=(size, size, 3), classes=1000, classifier_activation=None
    )
    if batch_norm == "inference":
        for layer in net.layers:
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    net.compile(
        optimizer=keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile="auto",
    )
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 256, (2 * rows, size, size, 3), dtype=np.uint8)
    labels = drawn.integers(0, 1000, 2 * rows)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).repeat().batch(rows, drop_remainder=True)
    data = data.map(lambda x, y: (tf.cast(x, tf.float32) / 127.5 - 1.0, y), tf.data.AUTOTUNE).prefetch(2)
    net.fit(data, steps_per_epoch=5, verbose=0)  # compiles
    began = time.perf_counter()
    net.fit(data, steps_per_epoch=steps, verbose=0)
    return rows * steps / (time.perf_counter() - began)


if __name__ == "__main__":
    print(fit(*sys.argv[1:]))
