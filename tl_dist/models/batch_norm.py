"""Batch normalization by the statistics of the batch, in chosen layers and in the training step alone.

A layer leaves its moments with the forward pass that computed them instead of moving its variables: the step reduces
them over all replicas together with the gradients, so that every copy of the moving statistics stays the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

Total = Callable[[Any, str], Any]
"""(tensor, name) -> its sum over all replicas, with a gradient"""

CUDNN_LEAST_EPSILON = 1e-5

_ACTIVE = threading.local()  # MirroredStrategy traces each replica in a thread of its own


class Moments:
    """What the layers of one forward pass normalized by: `rows * mean` and `rows * variance`, by layer."""

    def __init__(self, layers: Collection[str], total: Total | None, *, fused: bool = False) -> None:
        self.layers = layers
        self.total = total
        self.fused = fused
        self.of: dict[str, tuple[Any, Any]] = {}

    def take(self, layer: Any, inputs: Any) -> tuple[Any, Any]:
        """Mean and (biased) variance over all axes but the last, of this replica's rows or of all replicas' rows."""
        axes = list(range(len(inputs.shape) - 1))
        if self.total is None:
            mean, variance = tf.nn.moments(inputs, axes)
        else:
            mean, variance = self._over_replicas(layer, inputs, axes)
        self._leave(layer, inputs, mean, variance)
        return mean, variance

    def _leave(self, layer: Any, inputs: Any, mean: Any, variance: Any) -> None:
        rows = tf.cast(inputs.shape[0] or tf.shape(inputs)[0], tf.float32)
        self.of[layer.name] = (rows * mean, rows * variance)

    def normalized(self, layer: Any, inputs: Any) -> Any:
        """[rows, height, width, channels] in the layer's own type, by one kernel forward and one backward.

        That sums in float32 whatever the type. Its variance is the unbiased one, as it was made for moving averages.
        """
        of_batch = layer.name in self.layers
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=tf.cast(inputs, layer.compute_dtype),
            scale=tf.ones(inputs.shape[-1]) if layer.gamma is None else layer.gamma.value,
            offset=tf.zeros(inputs.shape[-1]) if layer.beta is None else layer.beta.value,
            mean=[] if of_batch else layer.moving_mean.value,
            variance=[] if of_batch else layer.moving_variance.value,
            epsilon=layer.epsilon,
            is_training=of_batch,
        )
        if of_batch:
            size = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
            self._leave(layer, inputs, mean, variance * ((size - 1.0) / size))
        return outputs

    def fuses(self, layer: Any, inputs: Any) -> bool:
        """Whether `normalized` can take a layer: cuDNN has a least epsilon, and no sum over replicas."""
        ours = layer.name not in self.layers or self.total is None
        return self.fused and ours and len(inputs.shape) == 4 and layer.epsilon >= CUDNN_LEAST_EPSILON

    def _over_replicas(self, layer: Any, inputs: Any, axes: list[int]) -> tuple[Any, Any]:
        assert self.total is not None
        # Squares of what is near 0 lose no digits; any shift that all replicas share will do.
        shift = tf.stop_gradient(tf.convert_to_tensor(layer.moving_mean))
        away = inputs - shift
        count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], tf.float32)
        sums = [tf.reduce_sum(away, axes), tf.reduce_sum(away * away, axes), count[None]]
        width = inputs.shape[-1]
        first, second, everyone = tf.split(
            self.total(tf.concat(sums, axis=0), f"batch_norm_{layer.name}"), [width, width, 1]
        )
        mean = first / everyone
        return mean + shift, tf.maximum(second / everyone - mean * mean, 0.0)


class BatchStatistics(keras.layers.BatchNormalization):
    """Keras's layer, which asks the active `Moments` what to normalize by, and moves nothing by itself."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        moments: Moments | None = getattr(_ACTIVE, "moments", None)
        if moments is not None and moments.fuses(self, inputs):
            return moments.normalized(self, inputs)
        if moments is None or self.name not in moments.layers:
            return super().call(inputs, training=False, mask=mask)
        values = tf.cast(inputs, tf.float32)
        mean, variance = moments.take(self, values)
        outputs = keras.ops.batch_normalization(
            values, mean, variance, axis=-1, offset=self.beta, scale=self.gamma, epsilon=self.epsilon
        )
        return tf.cast(outputs, self.compute_dtype)


def is_batch_norm(layer: Any) -> bool:
    """Whether it is a layer that this module knows how to train."""
    return isinstance(layer, keras.layers.BatchNormalization)


def adopt(network: Any) -> None:
    """Let the batch-norm layers of a network ask for moments; nothing else of them changes."""
    for layer in filter(is_batch_norm, network.layers):
        if layer.axis not in (-1, len(layer.input.shape) - 1):
            raise ValueError(f"{layer.name} normalizes axis {layer.axis}, not the last")
        layer.__class__ = BatchStatistics


@contextmanager
def collecting(layers: Collection[str], total: Total | None, *, fused: bool = False) -> Iterator[Moments]:
    """Within it these layers normalize by their batch: over all replicas by `total`, or this replica's rows alone.

    `fused`: these, and those that normalize by stored statistics, by TensorFlow's one kernel for it where it can; equal
    up to rounding.
    """
    moments = Moments(layers, total, fused=fused)
    _ACTIVE.moments = moments
    try:
        yield moments
    finally:
        _ACTIVE.moments = None


def read(variable: Any) -> Any:
    """Inside a replica: the value of its own copy of a statistic, which is that of the handle."""
    return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)


def move(variable: Any, moment: Any, *, momentum: Any, skipped: Any) -> None:
    """Inside a replica: move a statistic toward the moment of the batch, unless the step was skipped."""
    old = read(variable)
    new = old * momentum + moment * (1.0 - momentum)
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=tf.where(skipped > 0, old, new))
