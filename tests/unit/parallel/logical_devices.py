"""Two logical CPU devices stand for GPUs: writes where batches and slices lie, and what training on them gives.

A script, since a process that has begun to compute cannot be given devices any more.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests.doubles import CONFIG, PARALLEL, build, memory_source
from tl_dist.config import OptimizerConfig
from tl_dist.data.batch import Batch
from tl_dist.data.order import Order
from tl_dist.data.pipeline import plain, train_batches
from tl_dist.parallel.collective import Collective
from tl_dist.parallel.mirrored import Mirrored
from tl_dist.parallel.replicas import prefetch_to
from tl_dist.training import chunk, losses, optim, step

STEPS = 6
ADAM = OptimizerConfig(name="adamw", learning_rate=0.01, ema=0.9)


def batches(bad: int | None = None, rows: int = 4) -> tf.data.Dataset:
    """Of four images each, or as many; one of them, in the `bad`-th, is damaged."""

    def checked(batch: Any) -> Any:
        if bad is not None:
            sound = tf.debugging.assert_less(batch.positions, tf.constant(4 * bad + 1, tf.int64), "bad example")
            with tf.control_dependencies([sound]):
                return batch._replace(labels=tf.identity(batch.labels))
        return batch

    source = memory_source(12, size=32)
    made = train_batches(plain(source, 32), Order(0, 12, rows), rows=range(rows), steps=range(STEPS))
    return made.map(checked)


def trained(device: str | None, *, gpu: bool, parallel: Any = PARALLEL) -> dict[str, Any]:
    """State and sums of a chunk whose batches are fed to a device, where the step runs, or as a strategy does."""
    with parallel.scope():
        net = build(train_from="all")
        optimizer = optim.Optimizer(ADAM, net.trainable, scale_loss=True)
    one = step.TrainStep(
        net,
        optimizer,
        losses.Objective(3, 4),
        parallel,
        lambda at: 0.01 * tf.cast(at + 1, tf.float32),
        gpu=gpu,
    )
    feed = prefetch_to(batches(), device) if parallel is PARALLEL else parallel.feed(batches())
    with tf.device(device):
        run = chunk.train_chunk(one)
        found = [run(feed, tf.constant(k, tf.int64), tf.constant(STEPS // 2)) for k in (0, STEPS // 2)]
    sums = [[float(part[key]) for key in ("loss", "correct", "examples", "norm")] for part in found]
    state = {path: v.numpy() for path, v in {**net.moving, **optimizer.variables}.items()}
    return {"sums": sums, "state": state}


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What of two trainings has not the same bits."""
    paths = [path for path, v in first["state"].items() if not np.array_equal(v, second["state"][path])]
    return paths + ["sums"] * (first["sums"] != second["sums"])


def ends_with_a_bad_example(feed: Any) -> bool:
    """Whether the first two batches come, and the third is the error that tells which example is bad."""
    try:
        for _ in range(2):
            next(feed)
        next(feed)
    except tf.errors.InvalidArgumentError as error:
        return "bad example" in error.message
    return False


def placed(parallel: Mirrored) -> dict[str, list[str]]:
    """The devices of cutting a batch, and of what each replica is given."""
    batch = Batch(*(tf.zeros([3, *([] if k else [2])]) for k in range(8)))

    @tf.function(autograph=False)
    def shared() -> Any:
        return parallel.run(lambda own, step: tf.reduce_sum(own.images), batch, 0)

    operations = shared.get_concrete_function().graph.get_operations()
    return {
        "cut on": sorted({op.device for op in operations if op.type == "StridedSlice"}),
        "given to": sorted({op.device for op in operations if op.type == "Identity" and _cut(op)}),
    }


def _cut(operation: Any) -> bool:
    return operation.inputs[0].op.type == "StridedSlice"


def collectives() -> dict[str, str]:
    """Where TensorFlow's own sums of one worker are made that has its gradients on another device than all else."""
    alone = Collective.__new__(Collective)
    alone.rank, alone.world_size, alone._patience_s, alone._keys = 0, 1, 60.0, {}
    alone._use({True: "CPU:0", False: "CPU:1"})
    in_graph = tf.function(lambda value: alone._sum(value, "gradients"), autograph=False)
    tf.config.set_soft_device_placement(False)  # an operation that is asked for elsewhere is an error
    try:
        graph = in_graph(tf.ones(3)).numpy().tolist()
    except tf.errors.InvalidArgumentError as error:
        graph = error.message
    tf.config.set_soft_device_placement(True)
    return {
        "gradients": alone._sum(tf.ones(3), "gradients").device[-5:],
        "all else": alone._sum(tf.ones(3), "total", on_cpu=True).device[-5:],
        "in a graph": graph,
    }


def main(output: Path) -> None:
    """The first makes the devices."""
    mirrored = Mirrored(CONFIG.model_copy(update={"workers": 2}))
    found: dict[str, Any] = placed(mirrored)
    fed_to = next(prefetch_to(batches(), "CPU:1"))
    found["fed to"] = sorted({tensor.device.rpartition("device:")[-1] for tensor in fed_to})
    plain_, ahead = trained(None, gpu=False), trained("CPU:1", gpu=True)
    found["differences"] = differences(plain_, ahead)
    found["error"] = ends_with_a_bad_example(prefetch_to(batches(bad=2), "CPU:1"))
    plain_ = trained(None, gpu=True, parallel=mirrored)
    mirrored.copies_ahead = True
    found["mirrored"] = {
        "differences": differences(plain_, trained(None, gpu=True, parallel=mirrored)),
        "error": ends_with_a_bad_example(mirrored.feed(batches(bad=2))),
        "fed to": [
            tensor.device.rpartition("device:")[-1]
            for tensor in mirrored._strategy.experimental_local_results(next(mirrored.feed(batches())).images)
        ],
        "uneven": type(mirrored.feed(batches(rows=3))) is type(iter(batches())),
    }
    found["collectives"] = collectives()
    output.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
