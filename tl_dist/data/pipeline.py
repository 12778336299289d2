"""Batches of this worker's rows, by tf.data: nothing about an iterator is ever saved, it is made anew at any step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.data.augment import augment, seed_of
from tl_dist.data.order import Order
from tl_dist.datasets import Source, host_tensor
from tl_dist.state import Batch

Read = Callable[[Any, Any], tuple[Any, Any]]
"""(index in the source, position in the stream) -> (image or features of a fixed shape, label), traced by tf.data."""


def augmented(source: Source, augmentations: Sequence[str], seed: int, image_size: int) -> Read:
    """Training examples: uint8 [image_size, image_size, 3], augmented by position."""

    def read(index: Any, position: Any) -> tuple[Any, Any]:
        image, label = source.read(index)
        return augment(image, augmentations, seed, position, image_size), label

    return read


def plain(source: Source, image_size: int) -> Read:
    """Examples as they are, resized: uint8 [image_size, image_size, 3]."""
    return augmented(source, (), 0, image_size)


def train_batches(
    read: Read,
    order: Order,
    *,
    rows: range,
    from_step: int,
    to_step: int,
    mask_features: int = 0,
    dropout: float = 0.0,
    weights: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> tf.data.Dataset:
    """One `Batch` per step in [from_step, to_step), holding the given rows of the global batch, in order.

    `mask_features` is the width of the dropout mask that each example gets; 0 for none. The cost of the first batch
    does not depend on `from_step`. `weights` are those of the examples in the loss, above 0; default: 1 each.
    """
    num_rows = len(rows)
    weight_of = None if weights is None else host_tensor(weights)

    def example(k: Any) -> Batch:
        position = order.positions(k // num_rows, rows.start + k % num_rows)
        index = order.index(position)
        image, label = read(index, position)
        weight = tf.constant(1.0) if weight_of is None else tf.gather(weight_of, index)
        draws = tf.random.stateless_uniform([mask_features], seed_of(order.seed, position, "dropout"))
        return Batch(image, tf.cast(label, tf.int32), weight, position, draws >= dropout)

    counter = tf.data.Dataset.range(from_step * num_rows, to_step * num_rows)
    return _batched(counter, example, num_rows, threads)


def evaluation_batches(
    read: Read, num_examples: int, *, rows: range, global_batch: int, mask_features: int = 0, threads: int = 1
) -> tf.data.Dataset:
    """Each of `num_examples` once over all workers, in order; the last batch is padded with weight 0."""
    num_batches = -(-num_examples // global_batch)
    num_rows = len(rows)

    def example(k: Any) -> Batch:
        index = (k // num_rows) * global_batch + rows.start + k % num_rows
        real = index < num_examples
        index = tf.minimum(index, num_examples - 1)
        image, label = read(index, index)
        every = tf.ones([mask_features], tf.bool)
        return Batch(image, tf.cast(label, tf.int32), tf.cast(real, tf.float32), index, every)

    return _batched(tf.data.Dataset.range(num_batches * num_rows), example, num_rows, threads)


def _batched(counter: tf.data.Dataset, example: Any, num_rows: int, threads: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    # Rows are sharded here, by position; TensorFlow's own sharding would split them again.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    mapped = counter.map(example, num_parallel_calls=threads)
    return mapped.batch(num_rows, drop_remainder=True).prefetch(2).with_options(options)
