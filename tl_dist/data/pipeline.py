"""Batches of this worker's rows, by tf.data; no iterator state is ever saved, since one can start at any step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.config import AugmentConfig
from tl_dist.config.data import STRETCHED, Square
from tl_dist.data import random as draws
from tl_dist.data.augment import augment
from tl_dist.data.batch import Batch, Transform
from tl_dist.data.crop import cropped, cropped_rows, drawn
from tl_dist.data.mixing import Mixing
from tl_dist.data.order import Order
from tl_dist.data.resize import resize
from tl_dist.datasets import Source, host_tensor
from tl_dist.datasets.annotations import SoftLabels

LookUp = Callable[[Any, Any], Any]
"""(indices [rows], positions [rows]) -> a value for each row [rows, ...]; traced by tf.data"""
PART = 16
"""rows to decode per call, so that they fit into the cache"""


@dataclass(frozen=True)
class Read:
    """Read examples into a batch: `rows`, and then `transforms` of the whole batch in order; all traced by tf.data.

    rows    (indices [rows], positions [rows]) -> (images or features [rows, ...], labels [rows]); the number of rows
            is known when it is traced
    at_once most rows per call of `rows`, if several calls in parallel are faster; None: all
    """

    rows: Callable[[Any, Any], tuple[Any, Any]]
    at_once: int | None = None
    transforms: tuple[Transform, ...] = ()

    def __call__(self, indices: Any, positions: Any) -> Batch:
        """Return the batch of these examples at these positions."""
        return _transformed(Batch.of(*self.rows(indices, positions), positions), self.transforms)

    def then(self, transform: Transform) -> Read:
        """Return a reader of the same batches, transformed."""
        return replace(self, transforms=(*self.transforms, transform))

    @property
    def mixing(self) -> Mixing | None:
        """Return how rows are mixed in pairs, if they are."""
        return next((t for t in self.transforms if isinstance(t, Mixing)), None)


def _transformed(batch: Batch, transforms: Iterable[Transform]) -> Batch:
    return reduce(lambda batch, transform: transform(batch), transforms, batch)


def augmented(
    source: Source,
    augmentations: tuple[str, ...],
    seed: int,
    image_size: int,
    settings: AugmentConfig = AugmentConfig(),  # noqa: B008  (frozen)
    square: Square = STRETCHED,
) -> Read:
    """Read training examples as uint8 [image_size, image_size, 3], augmented by position.

    Whole images are made square by `resize`. A random crop of an encoded image is taken from the whole image.
    """
    to_size: dict[str, Any] = {"image_size": image_size, "area": settings.crop_area}
    mirror = augmentations[1:2] == ("flip",)

    def whole(indices: Any, positions: Any) -> tuple[Any, Any]:
        images, labels = source.read(indices)
        return resize(images, image_size, square), labels

    def each(index: Any, position: Any) -> tuple[Any, Any]:
        image, label = whole(index, position)
        return tf.ensure_shape(image, [image_size, image_size, 3]), label

    def crops(indices: Any, positions: Any) -> tuple[Any, Any]:
        numbers = drawn(seed, positions, mirror=mirror)
        if source.is_encoded:
            return cropped_rows(source, indices, numbers, **to_size)
        return one_by_one(partial(cropped, source, **to_size))(indices, numbers)

    rows: Callable[[Any, Any], tuple[Any, Any]] = whole
    at_once, left = None, augmentations
    if not source.reads_many and augmentations[:1] == ("random_resized_crop",):
        rows, at_once = crops, PART if source.is_encoded else 1
        left = augmentations[2 if mirror else 1 :]
    elif not source.reads_many:
        rows, at_once = one_by_one(each), 1

    def augment_rows(batch: Batch) -> Batch:
        return batch._replace(images=augment(batch.images, left, settings, seed, batch.positions))

    mixing = (Mixing(seed, settings.mixup, settings.cutmix),) if settings.mixes else ()
    return Read(rows, at_once, (augment_rows, *mixing))


def one_by_one(each: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Turn a reader of one example, (index, position) -> (image of a fixed shape, label), into a reader of rows."""

    def batch(indices: Any, positions: Any) -> tuple[Any, Any]:
        rows = zip(tf.unstack(indices), tf.unstack(positions), strict=True)
        images, labels = zip(*(each(index, position) for index, position in rows), strict=True)
        return tf.stack(images), tf.stack(labels)

    return batch


def plain(source: Source, image_size: int, square: Square = STRETCHED) -> Read:
    """Read examples without augmentation, resized to uint8 [image_size, image_size, 3]."""
    return augmented(source, (), 0, image_size, square=square)


def soft_labels(order: Order, soft: SoftLabels) -> Transform:
    """Mix each label with another; not to be combined with mixing of images."""
    columns = [host_tensor(values) for values in soft]

    def transform(batch: Batch) -> Batch:
        index = order.index(batch.positions)
        others, shares = (tf.gather(values, index) for values in columns)
        return batch._replace(others=others, shares=shares)

    return transform


def example_weights(order: Order, weights: NDArray[np.float32]) -> Transform:
    """Weigh the examples in the loss by weights above 0."""
    weight_of = host_tensor(weights)
    return lambda batch: batch._replace(weights=tf.gather(weight_of, order.index(batch.positions)))


def dropout_masks(order: Order, rates: list[float]) -> Transform:
    """Draw a mask for each row, with a column for each rate."""
    return lambda batch: batch._replace(masks=draws.keep_masks(order.seed, batch.positions, rates))


def teacher_logits(order: Order, look_up: LookUp) -> Transform:
    """Look up the logits of a teacher; not to be combined with mixing of images."""
    return lambda batch: batch._replace(teacher=look_up(order.index(batch.positions), batch.positions))


def train_batches(
    read: Read,
    order: Order,
    *,
    rows: range,
    steps: range,
    transforms: Sequence[Transform] = (),
    threads: int = 1,
) -> tf.data.Dataset:
    """Yield one `Batch` per step with `rows` of the global batch, in order, changed by `transforms` at last.

    The cost of the first batch does not depend on the first step.
    """
    # Mixing needs both images of a pair: a share that begins or ends inside a pair reads one row more.
    mixing = read.mixing
    read_rows = rows if mixing is None else mixing.whole_pairs(rows, order.global_batch)

    def numbers(step: Any) -> tuple[Any, Any]:
        first = order.positions(step, rows.start)
        if mixing is not None:
            first -= first % 2
        positions = first + tf.range(len(read_rows), dtype=tf.int64)
        return order.index(positions), positions

    def own_rows(batch: Batch) -> Batch:
        # This share begins at the same row of the batch at every step.
        begin = tf.cast((batch.positions[0] - rows.start) % order.global_batch != 0, tf.int32)
        shares = (t[begin : begin + len(rows)] for t in batch)
        return Batch(*(tf.ensure_shape(t, [len(rows), *t.shape[1:]]) for t in shares))

    after = transforms if mixing is None else (own_rows, *transforms)
    in_steps = tf.data.Dataset.range(steps.start, steps.stop)
    return _batches(in_steps, numbers, read, (*read.transforms, *after), len(read_rows), threads)


def evaluation_batches(
    read: Read, num_examples: int, *, rows: range, global_batch: int, threads: int = 1
) -> tf.data.Dataset:
    """Yield each of `num_examples` once over all workers, in order; the last batch is padded with weight 0."""
    num_batches = -(-num_examples // global_batch)

    def numbers(k: Any) -> tuple[Any, Any]:
        positions = k * global_batch + tf.range(rows.start, rows.stop, dtype=tf.int64)
        return tf.minimum(positions, num_examples - 1), positions

    def padded(batch: Batch) -> Batch:
        weights = tf.cast(batch.positions < num_examples, tf.float32)
        return batch._replace(weights=weights, positions=tf.minimum(batch.positions, num_examples - 1))

    in_order = tf.data.Dataset.range(num_batches)
    return _batches(in_order, numbers, read, (padded, *read.transforms), len(rows), threads)


# Nothing here needs AutoGraph, which would take as long as the rest of the tracing to rewrite all functions of a map.
@tf.autograph.experimental.do_not_convert
def _batches(
    steps: tf.data.Dataset,
    numbers: Callable[[Any], tuple[Any, Any]],
    read: Read,
    transforms: Sequence[Transform],
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

    def batch(images: Any, labels: Any, positions: Any) -> Batch:
        return _transformed(Batch.of(images, labels, positions), transforms)

    def whole(step: Any) -> Batch:
        indices, positions = numbers(step)
        return batch(*read.rows(indices, positions), positions)

    if read.at_once is None:
        batches = steps.map(whole, num_parallel_calls=threads)
    else:
        parts = steps.map(numbers).rebatch(part_of(num_rows, read.at_once), drop_remainder=True)
        # A copy: `rebatch` yields views into a larger tensor, and logs a warning for each view that it gets back.
        parts = parts.map(
            lambda indices, positions: (*read.rows(indices, positions), tf.raw_ops.DeepCopy(x=positions)),
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


def part_of(num_rows: int, most: int = PART) -> int:
    """Return how many rows to read per call: the largest divisor up to `most`.

    A share without a divisor from 4 to 16 is one piece: smaller parts would cost more than parallelism gains.
    """
    best = max(part for part in range(1, most + 1) if num_rows % part == 0)
    return best if best >= min(4, most) else num_rows
