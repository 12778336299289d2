"""What follows the backbone: pooling, normalization, and the layers of the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def pool(features: Any, kind: str) -> Any:
    """Pool feature maps [rows, h, w, c] to [rows, n]: n is c, 2c for both, h*w*c for flatten."""
    if kind == "flatten":
        return tf.reshape(features, [-1, np.prod(features.shape[1:])])
    average = tf.reduce_mean(features, axis=(1, 2))
    if kind == "average":
        return average
    maximum = tf.reduce_max(features, axis=(1, 2))
    return maximum if kind == "maximum" else tf.concat([average, maximum], axis=-1)


def num_pooled(shape: Sequence[int], kind: str) -> int:
    """Return how many numbers `pool` makes of a feature map [h, w, c]."""
    height, width, channels = shape
    return {"flatten": height * width * channels, "both": 2 * channels}.get(kind, channels)


def normalize(features: Any) -> Any:
    """Give each row mean 0 and variance 1, in float32 (Ba et al., arXiv 1607.06450, without gain and bias).

    Pooled features of a network without batch norm can be in the hundreds, where no learning rate fits both the head
    and the backbone.
    """
    wide = tf.cast(features, tf.float32)
    mean, variance = tf.nn.moments(wide, axes=[-1], keepdims=True)
    return tf.cast((wide - mean) * tf.math.rsqrt(variance + 1e-6), features.dtype)


def hidden_layer(num_inputs: int, num_outputs: int, seed: int) -> Any:
    """Return a dense layer with relu, in the dtype policy's compute type."""
    initial = keras.initializers.GlorotUniform(seed=seed)
    layer = keras.layers.Dense(num_outputs, activation="relu", kernel_initializer=initial, name="hidden")
    layer.build((None, num_inputs))
    return layer


def last_layer(num_inputs: int, num_outputs: int) -> Any:
    """Return the layer of the logits, float32.

    Its weights start at 0, as in Big Transfer (arXiv 1912.11370): so a new head does not disturb the backbone.
    """
    layer = keras.layers.Dense(num_outputs, kernel_initializer="zeros", dtype="float32", name="logits")
    layer.build((None, num_inputs))
    return layer
