"""The stored views of an example, and reading them back: training sees the features that it would have computed.

For an augmentation with few outcomes (flips, right angles) every outcome of each example is stored as a view. Each
position draws the view that the pipeline would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.data.augment import VIEWS, drawn_view
from tl_dist.data.batch import Batch
from tl_dist.data.pipeline import Read, as_written
from tl_dist.datasets import Source, host_tensor
from tl_dist.features.stored import FeatureSet


def views_of(augmentations: Sequence[str]) -> int:
    """Return how many views of an example these augmentations can make."""
    return prod(VIEWS[name].num for name in augmentations)


def drawn_views(augmentations: Sequence[str], seed: int, positions: Any) -> Any:
    """Return the view that each position draws, int32 [rows], with the same draws as in the pipeline."""
    view = tf.zeros(tf.shape(positions), tf.int32)
    for name in augmentations:
        view = view * VIEWS[name].num + drawn_view(seed, positions, name)
    return view


def apply_views(images: Any, augmentations: Sequence[str], view: Any) -> Any:
    """Return each image as augmented when `drawn_views` gives `view`, int32 [rows]."""
    base = views_of(augmentations)
    for name in augmentations:
        base //= VIEWS[name].num
        images = VIEWS[name].apply(images, (view // base) % VIEWS[name].num)
    return images


def in_views(read: Read, augmentations: Sequence[str]) -> Read:
    """Read the same images in every view of these augmentations, [rows, views, ...]; without any, [rows, ...]."""
    num_views = views_of(augmentations)
    if num_views == 1:
        return read

    def every_view(batch: Batch) -> Batch:
        all_rows = tf.ones_like(batch.positions, tf.int32)
        images = [apply_views(batch.images, augmentations, view * all_rows) for view in range(num_views)]
        return batch._replace(images=tf.stack(images, 1))

    return read.then(every_view)


@tf.autograph.experimental.do_not_convert
def in_order(
    source: Source,
    resized: Callable[[Any], Any],
    augmentations: Sequence[str],
    share: range,
    at_once: int,
    threads: int,
) -> tf.data.Dataset:
    """Return batches of `at_once` rows: every view of every example of a share, in order; `threads` decode."""
    num_views = views_of(augmentations)

    def views(index: Any) -> Any:
        copies = tf.tile(resized(source.read(index)[0])[None], [num_views, 1, 1, 1])
        return apply_views(copies, augmentations, tf.range(num_views))

    examples = tf.data.Dataset.range(share.start, share.stop).map(
        views, num_parallel_calls=max(2, threads), deterministic=True
    )
    return examples.unbatch().batch(at_once).prefetch(2).with_options(as_written())


def reader_of_views(features: FeatureSet, source: Source, held: np.ndarray | None = None) -> Read:
    """Read stored examples for evaluation: the features of every view, [rows, views, ...]; `held` as in `reader`."""

    def every_view(examples: Any, positions: Any) -> Any:
        return tf.stack(
            [features.rows(examples, tf.zeros_like(examples) + view) for view in range(features.num_views)],
            axis=1,
        )

    return _reader(source, held, every_view)


def reader(
    features: FeatureSet,
    source: Source,
    augmentations: Sequence[str],
    seed: int,
    held: np.ndarray | None = None,
) -> Read:
    """Read stored examples for training: the features of the view that the position draws.

    `held` gives the example of the set for each example of the source; by default they are the same.
    """

    def drawn_view_of(examples: Any, positions: Any) -> Any:
        return features.rows(examples, drawn_views(augmentations, seed, positions))

    return _reader(source, held, drawn_view_of)


def _reader(source: Source, held: np.ndarray | None, read: Callable[[Any, Any], Any]) -> Read:
    labels = host_tensor(np.asarray(source.labels, np.int32))
    examples = None if held is None else host_tensor(np.asarray(held, np.int64))

    def rows(indices: Any, positions: Any) -> tuple[Any, Any]:
        of_set = indices if examples is None else tf.gather(examples, indices)
        return read(of_set, positions), tf.gather(labels, indices)

    return Read(rows)
