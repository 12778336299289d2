"""Two logical CPU devices stand for GPUs: writes where batches and slices lie, and what training on them gives.

A script, since a process that has begun to compute cannot be given devices any more.
"""

from __future__ import annotations

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
from tl_dist.parallel.feed import fed
from tl_dist.parallel.mirrored import Mirrored
from tl_dist.training import chunk, optim, step

STEPS = 6
ADAM = OptimizerConfig(name="adamw", learning_rate=0.01, ema=0.9)


def batches(bad: int | None = None) -> tf.data.Dataset:
    """Of four images each; one of them, in the `bad`-th, is damaged."""

    def checked(batch: Any) -> Any:
        if bad is not None:
            sound = tf.debugging.assert_less(
                batch.positions, tf.constant(4 * bad + 1, tf.int64), "bad example"
            )
            with tf.control_dependencies([sound]):
                return batch._replace(labels=tf.identity(batch.labels))
        return batch

    source = memory_source(12, size=32)
    made = train_batches(plain(source, 32), Order(0, 12, 4), rows=range(4), from_step=0, to_step=STEPS)
    return made.map(checked)


def trained(device: str | None, *, gpu: bool) -> dict[str, Any]:
    """State and sums of a chunk whose batches are fed to a device, where the step runs."""
    net = build(train_from="all")
    optimizer = optim.Optimizer(ADAM, net.trainable, scale_loss=True)
    one = step.TrainStep(
        net, optimizer, step.Objective(3, 4), PARALLEL, lambda at: 0.01 * tf.cast(at + 1, tf.float32), gpu=gpu
    )
    feed = fed(batches(), device)
    with tf.device(device):
        run = chunk.train_chunk(one)
        found = [run(feed, tf.constant(k, tf.int64), tf.constant(STEPS // 2)) for k in (0, STEPS // 2)]
    sums = [[float(part[key]) for key in ("loss", "correct", "examples", "norm")] for part in found]
    state = {path: v.numpy() for path, v in {**net.moving, **optimizer.variables}.items()}
    return {"sums": sums, "state": state}


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


def main(output: Path) -> None:
    """The first makes the devices."""
    found: dict[str, Any] = placed(Mirrored(CONFIG.model_copy(update={"workers": 2})))
    fed_to = next(fed(batches(), "CPU:1"))
    found["fed to"] = sorted({tensor.device.rpartition("device:")[-1] for tensor in fed_to})
    plain_, ahead = trained(None, gpu=False), trained("CPU:1", gpu=True)
    found["same sums"] = plain_["sums"] == ahead["sums"]
    found["different state"] = [
        path for path, v in plain_["state"].items() if not np.array_equal(v, ahead["state"][path])
    ]
    try:
        list(fed(batches(bad=2), "CPU:1"))
    except tf.errors.InvalidArgumentError as error:
        found["error"] = "bad example" in error.message
    output.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
