"""The stored views of an example, and reading them back: training sees the features that it would have computed.

Every outcome of an augmentation with few (flips, right angles) is stored; a position draws as in the pipeline.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.data.augment import VIEWS, drawn_view
from tl_dist.data.batch import Batch
from tl_dist.data.pipeline import Read
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


def reader(
    features: FeatureSet,
    source: Source,
    augmentations: Sequence[str] | None,
    seed: int = 0,
    held: np.ndarray | None = None,
) -> Read:
    """Read the features of the view that each position draws, [rows, ...]; with None of every view, [rows, views, ...].

    `held` gives the example of the set for each example of the source; by default they are the same.
    """
    labels = host_tensor(source.truth)
    examples_held = None if held is None else host_tensor(np.asarray(held, np.int64))

    def read(indices: Any, positions: Any) -> tuple[Any, Any]:
        examples = indices if examples_held is None else tf.gather(examples_held, indices)
        if augmentations is None:
            views = [features.rows(examples, tf.zeros_like(examples) + view) for view in range(features.num_views)]
            values = tf.stack(views, axis=1)
        else:
            values = features.rows(examples, drawn_views(augmentations, seed, positions))
        return values, tf.gather(labels, indices)

    return Read(read)
