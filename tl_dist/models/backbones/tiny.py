"""A VGG of 24,000 parameters without pretrained weights, for tests, smoke runs and examples."""

from __future__ import annotations

from typing import Any

from tl_dist.models.backbones import Backbone


def _build(input_shape: tuple[int, int, int]) -> Any:
    import keras

    x = inputs = keras.Input(input_shape)
    for block, filters in enumerate((16, 32, 64), start=1):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"block{block}_conv1")(x)
        x = keras.layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
    return keras.Model(inputs, x, name="tiny")


TINY = Backbone(
    name="tiny",
    build=_build,
    input_size=32,
    min_size=8,
    preprocessing="tf",
    stages={f"block{k}": f"block{k}_conv1" for k in (1, 2, 3)},
    batch_norm=False,
    prunable=True,
)
