"""Which views of an example are kept, and reading them back: training sees the features that it would have computed.

An augmentation with few outcomes (flips, right angles) is kept as that many views of each example, and the view that
a position draws is the one that the pipeline would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.data.augment import VIEWS, drawn_view
from tl_dist.data.pipeline import Read, as_written
from tl_dist.datasets import Source, host_tensor
from tl_dist.features.stored import FeatureSet


def views_of(augmentations: Sequence[str]) -> int:
    """How many views of an example these augmentations can make."""
    return prod(VIEWS[name].num for name in augmentations)


def drawn_views(augmentations: Sequence[str], seed: int, positions: Any) -> Any:
    """The view that each position draws, int32 [rows]; the draws are those of the pipeline."""
    view = tf.zeros(tf.shape(positions), tf.int32)
    for name in augmentations:
        view = view * VIEWS[name].num + drawn_view(seed, positions, name)
    return view


def apply_views(images: Any, augmentations: Sequence[str], view: Any) -> Any:
    """Each image as augmented when `drawn_views` gives `view`, int32 [rows]."""
    below = views_of(augmentations)
    for name in augmentations:
        below //= VIEWS[name].num
        images = VIEWS[name].apply(images, (view // below) % VIEWS[name].num)
    return images


def in_views(read: Read, augmentations: Sequence[str]) -> Read:
    """The same images in every view that these augmentations can make: [rows, views, ...]; as they are without any."""
    num_views = views_of(augmentations)
    if num_views == 1:
        return read

    def finish(images: Any, positions: Any) -> Any:
        images = read.finish(images, positions)
        all_rows = tf.ones_like(positions, tf.int32)
        return tf.stack([apply_views(images, augmentations, view * all_rows) for view in range(num_views)], 1)

    return replace(read, finish=finish)


@tf.autograph.experimental.do_not_convert
def in_order(
    source: Source,
    resized: Callable[[Any], Any],
    augmentations: Sequence[str],
    share: range,
    at_once: int,
    threads: int,
) -> tf.data.Dataset:
    """Every view of every example of a share, one after another, so many at a time; `threads` decode."""
    num_views = views_of(augmentations)

    def views(index: Any) -> Any:
        copies = tf.tile(resized(source.read(index)[0])[None], [num_views, 1, 1, 1])
        return apply_views(copies, augmentations, tf.range(num_views))

    examples = tf.data.Dataset.range(share.start, share.stop).map(
        views, num_parallel_calls=max(2, threads), deterministic=True
    )
    return examples.unbatch().batch(at_once).prefetch(2).with_options(as_written())


def reader_of_views(features: FeatureSet, source: Source, held: np.ndarray | None = None) -> Read:
    """Cached examples for evaluation: the features of every view of each, [rows, views, ...]; `held` as in `reader`."""
    labels = host_tensor(np.asarray(source.labels, np.int32))
    examples = None if held is None else host_tensor(np.asarray(held, np.int64))

    def rows(indices: Any, positions: Any) -> tuple[Any, Any]:
        kept = indices if examples is None else tf.gather(examples, indices)
        views = [features.rows(kept, tf.zeros_like(kept) + view) for view in range(features.num_views)]
        return tf.stack(views, axis=1), tf.gather(labels, indices)

    return Read(rows)


def reader(
    features: FeatureSet,
    source: Source,
    augmentations: Sequence[str],
    seed: int,
    held: np.ndarray | None = None,
) -> Read:
    """Cached training examples: the features of the view that the position draws.

    `held` says which example of the set each example of the source is; default: the same one.
    """
    labels = host_tensor(np.asarray(source.labels, np.int32))
    examples = None if held is None else host_tensor(np.asarray(held, np.int64))

    def rows(indices: Any, positions: Any) -> tuple[Any, Any]:
        kept = indices if examples is None else tf.gather(examples, indices)
        return features.rows(kept, drawn_views(augmentations, seed, positions)), tf.gather(labels, indices)

    return Read(rows)
