"""The split of the step time says where the time went: a slow input shows as waiting for data."""

import time
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import OPTIMIZER, PARALLEL, build, memory_source
from tl_dist.data.order import Order
from tl_dist.data.pipeline import plain, train_batches
from tl_dist.training import chunk, losses, optim, step


def sums(delay_s: float, *, timed: bool = True, steps: int = 10, image_size: int = 64) -> dict[str, float]:
    """The sums of a chunk whose batches come `delay_s` apart."""
    source = memory_source(12, size=image_size)

    def late(batch: Any) -> Any:
        def wait() -> np.int32:
            time.sleep(delay_s)
            return np.int32(0)

        waited = tf.numpy_function(wait, [], tf.int32)
        return batch._replace(labels=batch.labels + tf.ensure_shape(waited, []))

    net = build(image_size=image_size, train_from="all")
    read = plain(source, image_size)
    batches = train_batches(read, Order(0, 12, 4), rows=range(4), steps=range(2 * steps)).map(late)
    run = chunk.train_chunk(
        step.TrainStep(
            net,
            optim.Optimizer(OPTIMIZER, net.trainable, scale_loss=False),
            losses.Objective(3, 4),
            PARALLEL,
            lambda s: tf.constant(0.1),
            clock=tf.timestamp if timed else chunk.no_clock,
        )
    )
    iterator = iter(batches)
    run(iterator, tf.constant(0, tf.int64), tf.constant(steps, tf.int64))  # compile
    if timed:
        time.sleep(0.5)  # what is read ahead is there
    start = time.monotonic()
    found = run(iterator, tf.constant(steps, tf.int64), tf.constant(steps, tf.int64))
    return {key: float(value) for key, value in found.items()} | {"elapsed_s": time.monotonic() - start}


@pytest.mark.timing
def test_a_slow_input_is_waiting_for_data() -> None:
    # Whatever else the machine does only adds to a wait: the least of three is the input's own.
    fast_wait_s = min(sums(0.0)["data_wait_s"] for _ in range(3))
    slow = sums(0.05)
    assert slow["data_wait_s"] > 10 * 0.05 * 0.5  # a few batches are read ahead
    assert slow["data_wait_s"] > 3 * fast_wait_s
    assert slow["reduction_s"] < 0.1 * slow["data_wait_s"]


def test_untimed_chunks_read_no_clock() -> None:
    found = sums(0.0, timed=False)
    assert found["data_wait_s"] == found["reduction_s"] == 0.0
    assert found["loss"] == pytest.approx(sums(0.0)["loss"])
