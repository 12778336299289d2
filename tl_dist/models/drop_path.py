"""Stochastic depth (Huang et al., arXiv 1603.09382): a training step leaves out residual branches, by example."""

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from tl_dist.models.backbones import Backbone

_ACTIVE = threading.local()  # MirroredStrategy traces each replica in a thread of its own


class _Branch(keras.layers.Layer):
    """The last layer of a residual branch, which multiplies its outputs by what `dropping` has for it."""

    def call(self, *inputs: Any, **options: Any) -> Any:
        outputs, factor = super().call(*inputs, **options), getattr(_ACTIVE, "factors", {}).get(self.name)
        if factor is None:
            return outputs
        return outputs * tf.cast(tf.reshape(factor, [-1] + [1] * (len(outputs.shape) - 1)), outputs.dtype)


def adopt(backbone: Backbone, network: Any, rate: float) -> dict[str, float]:
    """Let the residual branches of a network be dropped; return the rate of each by the name of its last layer.

    The rates of blocks rise linearly from 0 to `rate`, as in timm. If that is 0, no layer changes.
    """
    ends = backbone.residual if rate and backbone.residual else "$"
    block_of = {layer: match[1] for layer in network.layers if (match := re.match(ends, layer.name))}
    blocks = [*dict.fromkeys(block_of.values())]
    for layer in block_of:
        layer.__class__ = type(type(layer).__name__, (_Branch, type(layer)), {})
    return {layer.name: rate * blocks.index(block) / max(len(blocks) - 1, 1) for layer, block in block_of.items()}


@contextmanager
def dropping(rates: Mapping[str, float], masks: Any) -> Iterator[None]:
    """Drop branches where the last columns of `masks`, bool [rows, columns], are False; their means stay the same."""
    columns = tf.unstack(tf.cast(masks, tf.float32), axis=1)[-len(rates) :] if rates else []
    _ACTIVE.factors = {name: mask / (1.0 - rates[name]) for name, mask in zip(rates, columns, strict=True)}
    try:
        yield
    finally:
        _ACTIVE.factors = {}
