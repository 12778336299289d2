"""What a training step leaves out at random: residual branches (stochastic depth, arXiv 1603.09382), and by `Dropout`.

Masks are drawn by (seed, position), as all random numbers here, and come with the batch.
"""

import math
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tl_dist.models.backbones import Backbone

_ACTIVE = threading.local()  # MirroredStrategy traces each replica in a thread of its own
MOST = 1 << 16
"""values of an image that one layer may drop"""


class Drop(NamedTuple):
    """What is left out of the outputs of a layer: each entry of a mask of this shape, without rows, at this rate."""

    rate: float
    shape: tuple[int, ...] = ()


class _Dropped(keras.layers.Layer):
    """A layer that multiplies its outputs by what `dropping` has for it."""

    def call(self, *inputs: Any, **options: Any) -> Any:
        outputs, factor = super().call(*inputs, **options), getattr(_ACTIVE, "factors", {}).get(self.name)
        if factor is None:
            return outputs
        missing = len(outputs.shape) - len(factor.shape)
        return outputs * tf.cast(tf.reshape(factor, [-1, *factor.shape[1:], *[1] * missing]), outputs.dtype)


def mask_shape(layer: Any) -> tuple[int, ...] | None:
    """Return the shape, without rows, of the masks of a `Dropout` or `SpatialDropout` layer; None for any other."""
    if not isinstance(layer, keras.layers.Dropout) or not layer.rate:
        return None
    shape = tuple(layer.output.shape[1:])
    if type(layer) is not keras.layers.Dropout:  # SpatialDropout
        return (*[1] * (len(shape) - 1), shape[-1])
    noise = layer.noise_shape
    return shape if noise is None else tuple(own or side for own, side in zip(noise[1:], shape, strict=True))


def adopt(backbone: Backbone, network: Any, rate: float) -> dict[str, Drop]:
    """Let residual branches and the user's `Dropout` drop; return what each drops, by the name of its last layer.

    The rates of blocks rise linearly from 0 to `rate`, as in timm. If that is 0, no branch changes.
    """
    ends = backbone.residual if rate and backbone.residual else "$"
    block_of = {layer: match[1] for layer in network.layers if (match := re.match(ends, layer.name))}
    blocks = [*dict.fromkeys(block_of.values())]
    share = {layer: rate * blocks.index(block) / max(len(blocks) - 1, 1) for layer, block in block_of.items()}
    drops = {layer: Drop(share[layer]) for layer in block_of}
    if backbone.function or backbone.head_from:
        shapes = {layer: mask_shape(layer) for layer in network.layers}
        drops |= {layer: Drop(layer.rate, shape) for layer, shape in shapes.items() if shape is not None}
    for layer in drops:
        layer.__class__ = type(type(layer).__name__, (_Dropped, type(layer)), {})
    return {layer.name: drop for layer, drop in drops.items()}


def rates(drops: Mapping[str, Drop]) -> list[float]:
    """Return the rate of each column of the masks."""
    return [drop.rate for drop in drops.values() for _ in range(math.prod(drop.shape))]


@contextmanager
def dropping(drops: Mapping[str, Drop], masks: Any) -> Iterator[None]:
    """Drop where the last columns of `masks`, bool [rows, columns], are False; means stay the same."""
    sizes = [math.prod(drop.shape) for drop in drops.values()]
    parts = tf.split(tf.cast(masks, tf.float32)[:, masks.shape[1] - sum(sizes) :], sizes, axis=1) if sizes else []
    _ACTIVE.factors = {
        name: tf.reshape(part, [-1, *drop.shape]) / (1.0 - drop.rate)
        for (name, drop), part in zip(drops.items(), parts, strict=True)
    }
    try:
        yield
    finally:
        _ACTIVE.factors = {}
