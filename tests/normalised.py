"""A backbone with batch norm that takes no time: for what is one network's as well as another's."""

from typing import Any

from tl_dist.models.backbones import Backbone


def normalised_network(input_shape: tuple[int, int, int], momentum: float = 0.9) -> Any:
    """Two convolutions with batch norm."""
    import keras  # here, because the command line reads the record as well

    x = inputs = keras.Input(input_shape)
    for k in (1, 2):
        x = keras.layers.Conv2D(8, 3, strides=2, name=f"conv{k}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{k}", momentum=momentum)(x)
        x = keras.layers.ReLU(name=f"relu{k}")(x)
    return keras.Model(inputs, x)


NORMALISED = Backbone("normalised", normalised_network, 32, 8, "tf", {"one": "conv1", "two": "conv2"})
