"""A trained classifier as one Keras model: images in, probabilities out; for use outside of tl_dist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tl_dist.config import Config, ModelConfig
from tl_dist.models import cut
from tl_dist.models.backbones import Backbone

_CAFFE_MEAN = (103.939, 116.779, 123.68)
_TORCH_MEAN = (0.485, 0.456, 0.406)
_TORCH_STD = (0.229, 0.224, 0.225)


def assemble(
    backbone: Backbone, cfg: Config, arrays: Mapping[str, np.ndarray], network: Any, num_classes: int
) -> Any:
    """A functional `keras.Model`: uint8 RGB [batch, size, size, 3] -> float32 probabilities [batch, classes].

    Made of Keras's own layers alone, so that it can be saved and loaded without tl_dist. `network` is the backbone
    with its weights, `arrays` has those of the head by path (`head/logits/kernel`).
    """
    settings, size = cfg.model, cfg.data.image_size or backbone.input_size
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    outputs = cut.stage_outputs(backbone, network, settings.layers) if settings.layers else [network.output]
    maps = keras.Model(network.inputs, outputs, name=backbone.name)(
        preprocessed(backbone.preprocessing, images), training=False
    )
    pooled = [_pooled(one, settings) for one in keras.tree.flatten(maps)]
    features = pooled[0] if len(pooled) == 1 else keras.layers.Concatenate(name="features")(pooled)
    dense: dict[str, Any] = {}
    if settings.hidden:
        dense["hidden"] = keras.layers.Dense(settings.hidden, activation="relu", name="hidden")
        features = dense["hidden"](features)
    dense["logits"] = keras.layers.Dense(num_classes, dtype="float32", name="logits")
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(dense["logits"](features))
    for name, layer in dense.items():
        layer.set_weights([arrays[f"head/{name}/kernel"], arrays[f"head/{name}/bias"]])
    return keras.Model(images, probabilities, name=cfg.name)


def preprocessed(kind: str, images: Any) -> Any:
    """What `backbones.preprocess` does, in Keras's own layers: float32 as the pretrained weights expect it."""
    scale = {"torch": 1 / 255.0, "tf": 1 / 127.5}.get(kind, 1.0)
    offset = -1.0 if kind == "tf" else 0.0
    x = keras.layers.Rescaling(scale, offset, dtype="float32", name="rescaled")(images)
    if kind == "caffe":
        blue_green_red = np.eye(3, dtype=np.float32)[::-1][None, None]
        x = keras.layers.Conv2D(3, 1, dtype="float32", trainable=False, name="subtract_mean")(x)
        layer = x._keras_history.operation
        layer.set_weights([blue_green_red, -np.array(_CAFFE_MEAN, np.float32)])
    elif kind == "torch":
        variance = np.square(_TORCH_STD)
        x = keras.layers.Normalization(
            mean=_TORCH_MEAN, variance=variance, dtype="float32", name="normalized"
        )(x)
    return x


def _pooled(maps: Any, settings: ModelConfig) -> Any:
    """One feature map, pooled and normalized as `head.pool` and `head.normalize` do."""
    layers = keras.layers
    if settings.pooling == "flatten":
        pooled = layers.Flatten()(maps)
    elif settings.pooling == "both":
        pooled = layers.Concatenate()(
            [layers.GlobalAveragePooling2D()(maps), layers.GlobalMaxPooling2D()(maps)]
        )
    elif settings.pooling == "maximum":
        pooled = layers.GlobalMaxPooling2D()(maps)
    else:
        pooled = layers.GlobalAveragePooling2D()(maps)
    if settings.normalize:
        pooled = layers.LayerNormalization(epsilon=1e-6, center=False, scale=False, dtype="float32")(pooled)
    return pooled
