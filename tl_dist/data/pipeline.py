"""Batches of this worker's rows, by tf.data; no iterator state is ever saved, since one can start at any step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.config import AugmentConfig
from tl_dist.data import random as draws
from tl_dist.data.augment import augment
from tl_dist.data.batch import Batch
from tl_dist.data.crop import cropped, cropped_rows, drawn
from tl_dist.data.mixing import Mixing
from tl_dist.data.order import Order
from tl_dist.data.resize import resize
from tl_dist.datasets import Source, host_tensor
from tl_dist.datasets.annotations import SoftLabels

LookUp = Callable[[Any, Any], Any]
"""(indices [rows], positions [rows]) -> a value for each row [rows, ...]; traced by tf.data"""


@dataclass(frozen=True)
class Read:
    """How examples become rows of a batch: functions of index and position, traced by tf.data.

    batch   (indices [rows], positions [rows]) -> (images or features [rows, ...], labels [rows]); the number of rows is
            known when it is traced
    part    number of rows -> rows per call of `batch`, if several calls in parallel are faster; None: all
    finish  (images, positions) -> images: operations on the whole batch
    mixing  how rows are mixed in pairs
    """

    batch: Callable[[Any, Any], tuple[Any, Any]]
    part: Callable[[int], int] | None = None
    finish: Callable[[Any, Any], Any] = lambda images, positions: images
    mixing: Mixing | None = None


def augmented(
    source: Source,
    augmentations: tuple[str, ...],
    seed: int,
    image_size: int,
    settings: AugmentConfig = AugmentConfig(),  # noqa: B008  (frozen)
    crop_fraction: float | None = None,
) -> Read:
    """Read training examples as uint8 [image_size, image_size, 3], augmented by position.

    Whole images are made square by `resize`. A random crop of an encoded image is taken from the whole image.
    """
    mixing = Mixing(seed, settings.mixup, settings.cutmix) if settings.mixes else None

    def finish(images: Any, positions: Any) -> Any:
        return augment(images, augmentations, settings, seed, positions)

    def whole(indices: Any, positions: Any) -> tuple[Any, Any]:
        images, labels = source.read(indices)
        return resize(images, image_size, crop_fraction), labels

    if source.reads_many:
        return Read(whole, finish=finish, mixing=mixing)
    if augmentations[:1] != ("random_resized_crop",):

        def each(index: Any, position: Any) -> tuple[Any, Any]:
            image, label = whole(index, position)
            return tf.ensure_shape(image, [image_size, image_size, 3]), label

        return Read(one_by_one(each), lambda rows: 1, finish, mixing)
    mirror = augmentations[1:2] == ("flip",)
    augmentations = augmentations[2 if mirror else 1 :]
    to_size: dict[str, Any] = {"image_size": image_size, "area": settings.crop_area}

    def crops(indices: Any, positions: Any) -> tuple[Any, Any]:
        numbers = drawn(seed, positions, mirror=mirror)
        if source.is_encoded:
            return cropped_rows(source, indices, numbers, **to_size)
        return one_by_one(partial(cropped, source, **to_size))(indices, numbers)

    return Read(crops, part_of if source.is_encoded else lambda rows: 1, finish, mixing)


def one_by_one(each: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Turn a reader of one example, (index, position) -> (image of a fixed shape, label), into a reader of rows."""

    def batch(indices: Any, positions: Any) -> tuple[Any, Any]:
        rows = zip(tf.unstack(indices), tf.unstack(positions), strict=True)
        images, labels = zip(*(each(index, position) for index, position in rows), strict=True)
        return tf.stack(images), tf.stack(labels)

    return batch


def plain(source: Source, image_size: int, crop_fraction: float | None = None) -> Read:
    """Read examples without augmentation, resized to uint8 [image_size, image_size, 3]."""
    return augmented(source, (), 0, image_size, crop_fraction=crop_fraction)


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
    soft: SoftLabels | None = None,
    teacher: LookUp | None = None,
    threads: int = 1,
) -> tf.data.Dataset:
    """Yield one `Batch` per step in [from_step, to_step) with `rows` of the global batch, in order.

    `mask_features` is the width of each example's dropout mask; 0 for none. The cost of the first batch does not
    depend on `from_step`. `weights` of the examples in the loss are above 0; default: 1. Neither `soft` labels
    nor the logits of a `teacher` can be combined with mixing.
    """
    weight_of = None if weights is None else host_tensor(weights)
    soft_of = None if soft is None else SoftLabels(*(host_tensor(values) for values in soft))
    # Mixing needs both images of a pair: a share that begins or ends inside a pair reads one row more.
    read_rows = rows if read.mixing is None else read.mixing.whole_pairs(rows, order.global_batch)

    def numbers(step: Any) -> tuple[Any, Any]:
        first = order.positions(step, rows.start)
        if read.mixing is not None:
            first = read.mixing.first_of_pair(first)
        positions = first + tf.range(len(read_rows), dtype=tf.int64)
        return order.index(positions), positions

    def batch(images: Any, labels: Any, positions: Any) -> Batch:
        images = read.finish(images, positions)
        labels = tf.cast(labels, tf.int32)
        others, shares = labels, tf.ones([len(read_rows)])
        if soft_of is not None:
            others, shares = (tf.gather(values, order.index(positions)) for values in soft_of)
        if read.mixing is not None:
            images, others, shares = read.mixing.mixed(images, labels, positions)
            # This share begins at the same row of the batch at every step.
            begin = tf.cast((positions[0] - rows.start) % order.global_batch != 0, tf.int32)
            images, labels, positions, others, shares = (
                tf.ensure_shape(t[begin : begin + len(rows)], [len(rows), *t.shape[1:]])
                for t in (images, labels, positions, others, shares)
            )
        if mask_features:
            masks = draws.keep_masks(order.seed, positions, mask_features, dropout)
        else:
            masks = tf.zeros([len(rows), 0], tf.bool)
        ones = tf.ones([len(rows)])
        example_weights = ones if weight_of is None else tf.gather(weight_of, order.index(positions))
        teacher_logits = (
            tf.zeros([len(rows), 0]) if teacher is None else teacher(order.index(positions), positions)
        )
        return Batch(images, labels, example_weights, positions, masks, others, shares, teacher_logits)

    steps = tf.data.Dataset.range(from_step, to_step)
    return _read(steps, numbers, read, batch, len(read_rows), threads)


def evaluation_batches(
    read: Read, num_examples: int, *, rows: range, global_batch: int, threads: int = 1
) -> tf.data.Dataset:
    """Yield each of `num_examples` once over all workers, in order; the last batch is padded with weight 0."""
    num_batches = -(-num_examples // global_batch)

    def numbers(k: Any) -> tuple[Any, Any]:
        positions = k * global_batch + tf.range(rows.start, rows.stop, dtype=tf.int64)
        return tf.minimum(positions, num_examples - 1), positions

    def batch(images: Any, labels: Any, positions: Any) -> Batch:
        labels = tf.cast(labels, tf.int32)
        weights = tf.cast(positions < num_examples, tf.float32)
        masks = tf.zeros([len(rows), 0], tf.bool)
        positions = tf.minimum(positions, num_examples - 1)
        images, ones = read.finish(images, positions), tf.ones([len(rows)])
        return Batch(images, labels, weights, positions, masks, labels, ones, tf.zeros([len(rows), 0]))

    return _read(tf.data.Dataset.range(num_batches), numbers, read, batch, len(rows), threads)


# Nothing here needs AutoGraph, which would take as long as the rest of the tracing to rewrite all functions of a map.
@tf.autograph.experimental.do_not_convert
def _read(
    steps: tf.data.Dataset,
    numbers: Callable[[Any], tuple[Any, Any]],
    read: Read,
    batch: Callable[[Any, Any, Any], Batch],
    num_rows: int,
    threads: int,
) -> tf.data.Dataset:
    """Map step -> (indices, positions) -> (images, labels, positions) -> Batch."""
    options = as_written()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    # Rows are sharded here, by position; TensorFlow's own sharding would split them again.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF

    def whole(step: Any) -> Batch:
        indices, positions = numbers(step)
        return batch(*read.batch(indices, positions), positions)

    if read.part is None:
        batches = steps.map(whole, num_parallel_calls=threads)
    else:
        parts = steps.map(numbers).rebatch(read.part(num_rows), drop_remainder=True)
        # A copy: `rebatch` yields views into a larger tensor, and logs a warning for each view that it gets back.
        parts = parts.map(
            lambda indices, positions: (*read.batch(indices, positions), tf.raw_ops.DeepCopy(x=positions)),
            threads,
        )
        examples = parts.rebatch(num_rows, drop_remainder=True)
        batches = examples.map(batch, num_parallel_calls=threads)
    return batches.prefetch(2).with_options(options)


def as_written() -> tf.data.Options:
    """Return options that keep TensorFlow from rewriting a pipeline whose parallelism is chosen by hand.

    A rewrite would gain nothing, and it copies everything that the functions hold, such as images and features in
    memory, for each iterator.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return options


def part_of(num_rows: int) -> int:
    """Return how many rows to decode per call: the largest divisor up to 16, so that they fit into the cache.

    A share without a divisor from 4 to 16 is one piece: smaller parts would cost more than parallelism gains.
    """
    best = max(part for part in range(1, 17) if num_rows % part == 0)
    return best if best >= 4 else num_rows
