"""How long a user waits: for the help, and from `tl-dist train` to the first step."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.comparison import Comparison, in_turn

TL_DIST = str(Path(sys.executable).parent / "tl-dist")
CONFIG = """\
steps: 1
global_batch: 32
precision: float32
data: {name: synthetic, image_size: 32, test_fraction: 0}
model: {backbone: vgg16, weights: random, train_from: all}
optimizer: {name: sgd, learning_rate: 1e-4}
"""
BARE = """
import tensorflow as tf, keras, numpy as np
net = keras.Sequential([keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3)),
                        keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)])
optimizer = keras.optimizers.SGD(1e-4, momentum=0.9)
data = tf.data.Dataset.from_tensor_slices((np.zeros((64, 32, 32, 3), np.uint8), np.zeros(64, np.int32))).batch(32)
@tf.function
def step(x, y):
    with tf.GradientTape() as tape:
        logits = net(tf.cast(x, tf.float32))
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
    optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)
    return loss
for x, y in data.take(1):
    float(step(x, y))
"""


def comparisons() -> Iterator[Comparison]:
    found = in_turn({"help": timed([TL_DIST, "--help"])}, rounds=7)
    yield Comparison("cli_start[help]", "s", found["help"], "patience", 0.5, bar=1.0, at_most=True)
    found = in_turn({"tl_dist": first_step, "bare": timed([sys.executable, "-c", BARE])}, rounds=5)
    yield Comparison(
        "cli_start[first step]", "s", found["tl_dist"], "bare script", found["bare"], bar=1.5, at_most=True
    )


def timed(argv: list[str]) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        subprocess.run(argv, check=True, capture_output=True)
        return time.perf_counter() - start

    return measure


def first_step() -> float:
    """Seconds from the command to the report of the first step."""
    directory = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    (directory / "first.yaml").write_text(CONFIG)
    metrics = directory / "runs" / "first" / "metrics.jsonl"
    start = time.perf_counter()
    argv = [TL_DIST, "train", "first.yaml"]
    process = subprocess.Popen(
        argv, cwd=directory, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (metrics.exists() and any(json.loads(x)["event"] == "train" for x in whole_lines(metrics))):
            if process.poll() not in (None, 0):
                raise RuntimeError(f"{' '.join(argv)} ended with {process.returncode}")
            time.sleep(0.01)
        return time.perf_counter() - start
    finally:
        process.wait()
        shutil.rmtree(directory)


def whole_lines(path: Path) -> list[str]:
    return path.read_text().rpartition("\n")[0].splitlines()
