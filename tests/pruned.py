"""Networks with weights everywhere, and what pruning leaves of them."""

from typing import Any

import keras
import numpy as np

from tests.doubles import build
from tl_dist.models import pruning
from tl_dist.models.classifier import Classifier

HEADS: dict[str, dict[str, Any]] = {
    "average": {},
    "both, of two stages": {"pooling": "both", "layers": ("block2", "block3")},
    "flatten, hidden": {"pooling": "flatten", "hidden": 8},
}


def with_every_weight_drawn(net: Classifier) -> Classifier:
    """Biases, statistics and head as well."""
    rng = np.random.default_rng(1)
    for path, variable in {**net.moving, **net.frozen}.items():
        drawn = rng.normal(0, 0.1, variable.shape)
        variable.assign(1 + drawn if path.endswith(("gamma", "moving_variance")) else drawn)
    return net


def trained(**settings: Any) -> Classifier:
    return with_every_weight_drawn(build(**settings))


def pruned(net: Classifier, prune: float, **settings: Any) -> Classifier:
    """What is left of it."""
    narrow = build(prune=prune, **settings)
    kept = pruning.kept(net, narrow.network)
    for path, variable in {**narrow.moving, **narrow.frozen}.items():
        variable.assign(kept[path])
    return narrow


def branching(input_shape: tuple[int, int, int]) -> Any:
    """A stem, a residual, an inverted residual and a dense block: every kind of layer between two convolutions.

    One of those that read fewer channels has strides, as the 3 x 3 of ResNetV2.
    """
    layers = keras.layers
    x = inputs = keras.Input(input_shape)
    x = layers.Conv2D(8, 3, strides=2, name="stem")(x)
    inside = layers.Conv2D(6, 1, name="residual_in")(x)
    inside = layers.ReLU()(layers.BatchNormalization(name="residual_norm")(inside))
    inside = layers.Conv2D(4, 3, name="residual_middle")(layers.ZeroPadding2D()(inside))
    inside = layers.Activation("relu")(layers.BatchNormalization(scale=False, name="middle_norm")(inside))
    x = layers.Add()([x, layers.Conv2D(8, 1, name="residual_out")(inside)])
    inside = layers.Conv2D(16, 1, use_bias=False, name="expand")(x)
    inside = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(inside)
    inside = layers.AveragePooling2D(2)(layers.BatchNormalization(name="depthwise_norm")(inside))
    x = layers.Conv2D(5, 3, strides=2, name="project")(inside)
    x = layers.Concatenate()([x, layers.Conv2D(4, 1, activation="relu", name="dense")(x)])
    x = layers.Multiply()([x, layers.Conv2D(9, 1, activation="sigmoid", name="gate")(x)])
    x = layers.BatchNormalization(name="top_norm")(layers.Conv2D(10, 1, name="top")(x))
    return keras.Model(inputs, x, name="branching")
