"""tl_dist's loop, with its reports and metrics, against a bare compiled loop of the same network, data and rule.

Both read images that lie in memory. `tiny` takes 1.036 to 1.059 of the bare loop's time in three runs of this
benchmark, and 0.955 to 1.008 where more loops take turns in one process: neither the clocks nor the norm and the
branch on it stand out.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.comparison import Comparison, in_turn

CASES = {
    "tiny": ("tiny", 64, 32, 200),
    "vgg16": ("vgg16", 32, 32, 10),
}  # backbone, batch, pixels, steps a round


def comparisons() -> Iterator[Comparison]:
    for name, (backbone, batch, size, steps) in CASES.items():
        sides = {"tl_dist": ours(backbone, batch, size, steps), "bare": bare(backbone, batch, size, steps)}
        for side in sides.values():
            side()  # compile
        found = in_turn(sides, rounds=9)
        yield Comparison(
            f"step_overhead[{name}]",
            "ms/step",
            found["tl_dist"],
            "bare loop",
            found["bare"],
            bar=1.02,
            at_most=True,
        )


def ours(backbone: str, batch: int, size: int, steps: int) -> Callable[[], float]:
    from benchmarks.trainer import Trainer, advance, config
    from tl_dist.parallel.single import SingleDevice
    from tl_dist.runs.checkpoint import Checkpointer
    from tl_dist.runs.directory import RunDir
    from tl_dist.trainer.run_writer import RunWriter
    from tl_dist.training.state import TrainState

    cfg = config(backbone=backbone, batch=batch, image_size=size)
    reports = Trainer(cfg, SingleDevice(cfg), "float32").reports(cfg.report.every_steps)
    run = RunDir(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    writer = RunWriter(
        run, cfg, TrainState({}), Checkpointer(run, keep=1, owned=lambda: True), total_steps=10**9, steps_per_epoch=16,
        num_workers=1, class_names=[str(k) for k in range(10)], meta={},
    )  # fmt: skip

    def measure() -> float:
        start = time.perf_counter()
        pulled = advance(reports, steps)
        for report in pulled:
            writer.report(report)
        return (time.perf_counter() - start) * 1000 / sum(report.steps for report in pulled)

    return measure


def bare(backbone: str, batch: int, size: int, steps: int) -> Callable[[], float]:
    """What one writes by hand: Keras's optimizer, a gradient tape, and a loop over steps inside one tf.function."""
    import keras
    import tensorflow as tf

    from benchmarks.trainer import config, synthetic_images
    from tl_dist.config import registry
    from tl_dist.models.backbones import preprocess

    cfg = config(backbone=backbone, batch=batch, image_size=size)
    images, labels = synthetic_images(cfg)
    record = registry.backbone(backbone)
    network = record.build((size, size, 3))
    net = keras.Sequential([network, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)])
    net.build((None, size, size, 3))
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9)
    optimizer.build(net.trainable_variables)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels)).repeat()
    iterator = iter(data.batch(batch, drop_remainder=True).prefetch(2))

    @tf.function
    def run_steps(batches: Any, n: Any) -> Any:
        total = tf.constant(0.0)
        for _ in tf.range(n):
            x, y = next(batches)
            with tf.GradientTape() as tape:
                logits = net(preprocess(record.preprocessing, x))
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
            optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)
            total += loss
        return total

    def measure() -> float:
        start = time.perf_counter()
        float(run_steps(iterator, tf.constant(steps)))
        return (time.perf_counter() - start) * 1000 / steps

    return measure
