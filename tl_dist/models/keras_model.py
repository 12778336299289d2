"""A trained classifier as one Keras model: images in, probabilities out; for use outside tl_dist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tl_dist.config import Config, ModelConfig
from tl_dist.models import cut, narrow
from tl_dist.models.backbones import Backbone, preprocess


def assemble(
    backbone: Backbone,
    cfg: Config,
    arrays: Mapping[str, np.ndarray],
    network: Any,
    num_classes: int,
    *,
    dense_head: bool = True,
    temperature: float | None = None,
) -> Any:
    """Return a functional `keras.Model`: uint8 RGB [batch, size, size, 3] -> float32 probabilities [batch, classes].

    It has Keras's own layers alone, so that it can be saved and loaded without tl_dist: the backbone is built again and
    takes the weights of `network`, whose batch-norm layers are not Keras's own. `arrays` has the weights of the head by
    path (`head/logits/kernel`). Without `dense_head` the last layer is written as products and their sum, the same
    function, which a converter to 8 bits leaves in float32. `temperature` divides the logits.
    """
    settings, size = cfg.model, cfg.data.image_size or backbone.input_size
    own = narrow.narrowed(backbone, settings.prune).build((size, size, 3))
    own.set_weights(network.get_weights())
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    outputs = cut.stage_outputs(backbone, own, settings.layers) if settings.layers else [own.output]
    maps = keras.Model(own.inputs, outputs, name=backbone.name)(
        preprocess(backbone.preprocessing, images), training=False
    )
    pooled = [_pooled(stage_maps, settings) for stage_maps in keras.tree.flatten(maps)]
    features = pooled[0] if len(pooled) == 1 else keras.layers.Concatenate(name="features")(pooled)
    dense: dict[str, Any] = {}
    if settings.hidden:
        dense["hidden"] = keras.layers.Dense(settings.hidden, activation="relu", name="hidden")
        features = dense["hidden"](features)
    if dense_head:
        dense["logits"] = keras.layers.Dense(num_classes, dtype="float32", name="logits")
        logits = dense["logits"](features)
    else:
        wide = keras.ops.expand_dims(keras.ops.cast(features, "float32"), -1)
        logits = keras.ops.sum(wide * arrays["head/logits/kernel"], axis=1) + arrays["head/logits/bias"]
    if temperature is not None:
        logits = keras.layers.Rescaling(1 / temperature, dtype="float32", name="calibration")(logits)
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
    for name, layer in dense.items():
        layer.set_weights([arrays[f"head/{name}/kernel"], arrays[f"head/{name}/bias"]])
    return keras.Model(images, probabilities, name=cfg.name)


def _pooled(maps: Any, settings: ModelConfig) -> Any:
    """Pool and normalize one feature map as `head.pool` and `head.normalize` do."""
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
        wide = layers.LayerNormalization(epsilon=1e-6, center=False, scale=False, dtype="float32")(pooled)
        pooled = keras.ops.cast(wide, pooled.dtype)
    return pooled
