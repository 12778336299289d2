"""The batch that the pipeline yields and a training step takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf


class Batch(NamedTuple):
    """Rows of one global batch, as tensors whose first axis is the row.

    images    uint8 [rows, size, size, 3]
    labels    int32 [rows], or float32 [rows, targets] where examples have these
    weights   float32 [rows]; 0 marks padding, which never counts
    positions int64 [rows]; position in the infinite example stream (training) or index in the source (evaluation)
    masks     bool [rows, columns]; True keeps a feature of the head's input or, in the last columns, a residual
              branch; of width 0 without dropout and in evaluation
    others    as `labels`; of the example that was mixed in; the same as `labels` if none was
    shares    float32 [rows]; weight of `labels` in the target; `others` has the rest
    teacher   float32 [rows, classes]; logits of a teacher; of width 0 without one, and in evaluation
    """

    images: Any
    labels: Any
    weights: Any
    positions: Any
    masks: Any
    others: Any
    shares: Any
    teacher: Any = None

    @classmethod
    def of(cls, images: Any, labels: Any, positions: Any) -> Batch:
        """Return a batch of rows of weight 1, without masks, mixing and teacher."""
        labels = labels if labels.dtype.is_floating else tf.cast(labels, tf.int32)
        ones = tf.ones(positions.shape)
        masks, teacher = (tf.zeros([*positions.shape, 0], kind) for kind in (tf.bool, tf.float32))
        return cls(images, labels, ones, positions, masks, labels, ones, teacher)


Transform = Callable[[Batch], Batch]
"""a change of whole batches, traced by tf.data"""
