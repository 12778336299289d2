"""Batch normalization by the statistics of the batch, in chosen layers and in the training step alone.

A layer stores its moments in `Moments`, which the step reduces with the gradients: all copies of a statistic are equal.
"""

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

Total = Callable[[Any, str], Any]  # (tensor, name) -> its sum over all replicas, with a gradient

CUDNN_LEAST_EPSILON = 1e-5

_ACTIVE = threading.local()  # MirroredStrategy traces each replica in a thread of its own


@dataclass
class Moments:
    """The moments that layers of one forward pass normalized by: `rows * mean` and `rows * variance`, by layer."""

    layers: Collection[str]
    total: Total | None
    fused: bool = False
    of: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def take(self, layer: Any, inputs: Any) -> tuple[Any, Any]:
        """Return mean and (biased) variance over all axes but the last, of this replica's rows or of all replicas'."""
        axes = list(range(len(inputs.shape) - 1))
        local = self.total is None
        moments = tf.nn.moments(inputs, axes) if local else self._over_replicas(layer, inputs, axes)
        self._store(layer, inputs, *moments)
        return moments

    def _store(self, layer: Any, inputs: Any, mean: Any, variance: Any) -> None:
        rows = tf.cast(inputs.shape[0] or tf.shape(inputs)[0], tf.float32)
        self.of[layer.name] = (rows * mean, rows * variance)

    def normalized(self, layer: Any, inputs: Any) -> Any:
        """Return the outputs, [rows, height, width, channels] in the layer's type, by one fused kernel each way.

        The kernel sums in float32 whatever the type. The variance that it returns is unbiased, for moving averages.
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
            self._store(layer, inputs, mean, variance * ((size - 1.0) / size))
        return outputs

    def fuses(self, layer: Any, inputs: Any) -> bool:
        """Return whether `normalized` can compute a layer: cuDNN has a least epsilon, and no sum over replicas."""
        is_local = layer.name not in self.layers or self.total is None
        return self.fused and is_local and len(inputs.shape) == 4 and layer.epsilon >= CUDNN_LEAST_EPSILON

    def _over_replicas(self, layer: Any, inputs: Any, axes: list[int]) -> tuple[Any, Any]:
        assert self.total is not None
        # Squares of values near 0 lose no digits; any shift that all replicas share will do.
        shift = tf.stop_gradient(tf.convert_to_tensor(layer.moving_mean))
        shifted = inputs - shift
        count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], tf.float32)
        sums = [tf.reduce_sum(shifted, axes), tf.reduce_sum(shifted * shifted, axes), count[None]]
        width = inputs.shape[-1]
        first, second, total_count = tf.split(
            self.total(tf.concat(sums, axis=0), f"batch_norm_{layer.name}"), [width, width, 1]
        )
        mean = first / total_count
        return mean + shift, tf.maximum(second / total_count - mean * mean, 0.0)


class BatchStatistics(keras.layers.BatchNormalization):
    """Keras's layer, which asks the active `Moments` what to normalize by, and never updates its variables."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """Normalize by the batch if the active `Moments` has this layer, else by the stored statistics."""
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
    """Return whether this module can train the layer."""
    return isinstance(layer, keras.layers.BatchNormalization)


def adopt(network: Any) -> None:
    """Let the batch-norm layers of a network ask for moments; nothing else about them changes."""
    for layer in filter(is_batch_norm, network.layers):
        if layer.axis not in (-1, len(layer.input.shape) - 1):
            raise ValueError(f"{layer.name} normalizes axis {layer.axis}, not the last")
        layer.__class__ = BatchStatistics


@contextmanager
def collecting(layers: Collection[str], total: Total | None, *, fused: bool = False) -> Iterator[Moments]:
    """Let these layers normalize by their batch inside: over all replicas by `total`, or by this replica's rows alone.

    `fused`: all batch-norm layers use TensorFlow's fused kernel where possible, with results equal up to rounding.
    """
    moments = Moments(layers, total, fused=fused)
    _ACTIVE.moments = moments
    try:
        yield moments
    finally:
        _ACTIVE.moments = None


def read(variable: Any) -> Any:
    """Return the value of this replica's own copy of a statistic, inside a replica."""
    return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)


def move(variable: Any, moment: Any, *, momentum: Any, skipped: Any) -> None:
    """Move a statistic toward the moment of the batch, inside a replica, unless the step was skipped."""
    old = read(variable)
    new = old * momentum + moment * (1.0 - momentum)
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=tf.where(skipped > 0, old, new))
