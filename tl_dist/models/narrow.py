"""A network with fewer channels: how it is built.

It is an ordinary network, which needs no mask and no special kernel. Channels that are added to others or multiplied
by them, as at the end of a residual block, all stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import keras

from tl_dist.models.backbones import Backbone

_layers = keras.layers
_CHANNEL_BY_CHANNEL = (
    _layers.Activation, _layers.AveragePooling2D, _layers.BatchNormalization, _layers.DepthwiseConv2D, _layers.Dropout,
    _layers.MaxPooling2D, _layers.ReLU, _layers.ZeroPadding2D,
)  # fmt: skip


def narrowed(backbone: Backbone, share: float) -> Backbone:
    """Return a `prunable` backbone without this share of the channels of each inner convolution."""
    return replace(backbone, build=partial(_build, backbone.build, share)) if share else backbone


def _build(
    build: Callable[[tuple[int, int, int]], Any], share: float, input_shape: tuple[int, int, int]
) -> Any:
    whole = build(input_shape)
    inner_names = _inner_convolutions(whole)

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if layer.name in inner_names:
            config["filters"] = max(1, round(config["filters"] * (1 - share)))
        return type(layer).from_config(config)

    return keras.models.clone_model(whole, clone_function=clone)


def _inner_convolutions(network: Any) -> set[str]:
    """Return the names of convolutions whose channels are read by one other convolution alone, or leave the network."""
    readers = defaultdict(list)
    for operation in network.operations:
        for tensor in inputs_of(operation):
            readers[id(tensor)].append(operation)

    def is_inner(operation: Any) -> bool:
        next_operations = readers[id(operation.output)]
        if len(next_operations) != 1:
            return not next_operations
        (reader,) = next_operations
        return is_convolution(reader) or (isinstance(reader, _CHANNEL_BY_CHANNEL) and is_inner(reader))

    return {layer.name for layer in network.layers if is_convolution(layer) and is_inner(layer)}


def is_convolution(operation: Any) -> bool:
    """Return whether the operation is a convolution that reads all channels for each channel that it outputs."""
    return isinstance(operation, _layers.Conv2D) and operation.groups == 1


def inputs_of(operation: Any) -> list[Any]:
    """Return the Keras tensors that an operation of a network reads."""
    return [] if isinstance(operation, _layers.InputLayer) else keras.tree.flatten(operation.input)
