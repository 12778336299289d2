"""A network with fewer channels: how it is built, and which of a wider one's channels it keeps.

Li et al., arXiv 1608.08710: of a convolution the filters of the smallest L1 norm go, and with each the slice of the
next layer that read it. What is left is an ordinary network, which needs no mask and no special kernel. Channels that
meet others, as at the end of a residual block, all stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tl_dist.models.backbones import Backbone, seam

if TYPE_CHECKING:
    from tl_dist.models.classifier import Classifier

_layers = keras.layers
_CHANNEL_BY_CHANNEL = (
    _layers.Activation, _layers.AveragePooling2D, _layers.BatchNormalization, _layers.DepthwiseConv2D, _layers.Dropout,
    _layers.MaxPooling2D, _layers.ReLU, _layers.ZeroPadding2D,
)  # fmt: skip


def narrowed(backbone: Backbone, share: float) -> Backbone:
    """The backbone, of those that are `prunable`, without this share of the channels of each inner convolution."""
    return replace(backbone, build=partial(_build, backbone.build, share)) if share else backbone


def _build(
    build: Callable[[tuple[int, int, int]], Any], share: float, input_shape: tuple[int, int, int]
) -> Any:
    whole = build(input_shape)
    inner = _inner(whole)

    def narrow(layer: Any) -> Any:
        config = layer.get_config()
        if layer.name in inner:
            config["filters"] = max(1, round(config["filters"] * (1 - share)))
        return type(layer).from_config(config)

    return keras.models.clone_model(whole, clone_function=narrow)


def _inner(network: Any) -> set[str]:
    """The convolutions whose channels are read by one other convolution alone, or leave the network."""
    readers = defaultdict(list)
    for operation in network.operations:
        for tensor in _inputs(operation):
            readers[id(tensor)].append(operation)

    def is_inner(operation: Any) -> bool:
        next_ones = readers[id(operation.output)]
        if len(next_ones) != 1:
            return not next_ones
        (reader,) = next_ones
        return is_convolution(reader) or (isinstance(reader, _CHANNEL_BY_CHANNEL) and is_inner(reader))

    return {layer.name for layer in network.layers if is_convolution(layer) and is_inner(layer)}


def is_convolution(operation: Any) -> bool:
    """Whether it is one that reads all channels for each of its own."""
    return isinstance(operation, _layers.Conv2D) and operation.groups == 1


def _inputs(operation: Any) -> list[Any]:
    """The Keras tensors that an operation of a network reads."""
    return [] if isinstance(operation, _layers.InputLayer) else keras.tree.flatten(operation.input)


def channels(wide: Classifier, network: Any) -> dict[int, np.ndarray]:
    """Which channels of `wide` each tensor of a narrower `network` of the same layers has, by the id of the tensor.

    `network` says how many there are of each convolution, the weights of `wide` which.
    """
    chosen: dict[int, np.ndarray] = {}
    for old, new in zip(wide.network.operations, network.operations, strict=True):
        here = np.arange(old.output.shape[-1])
        if new.output.shape[-1] < len(here):
            here = chosen[id(_inputs(new)[0])]
            if is_convolution(new):
                norms = np.abs(old.kernel.numpy()).sum(axis=(0, 1, 2), dtype=np.float64)
                here = np.sort(np.argsort(-norms, kind="stable")[: new.filters])
        chosen[id(new.output)] = here
    return chosen


def kept(wide: Classifier, network: Any) -> dict[str, np.ndarray]:
    """What a narrower `network` of the same layers takes over from `wide`, by path: its weights, and the head's."""
    arrays = {path: v.numpy() for path, v in {**wide.moving, **wide.frozen}.items()}
    chosen = channels(wide, network)
    for new in network.operations:
        here = chosen[id(new.output)]
        for variable in getattr(new, "weights", ()):
            path = f"backbone/{new.name}/{variable.name}"
            if variable.name == "kernel" and is_convolution(new):
                arrays[path] = arrays[path][:, :, chosen[id(new.input)]][..., here]
            else:  # [channels], or [height, width, channels, 1] of a convolution by channels
                arrays[path] = arrays[path].take(here, axis=2 if len(variable.shape) == 4 else 0)
    features, first = [], 0
    for end, width, num_channels in zip(wide.stage_ends, wide.stage_widths, wide.stage_channels, strict=True):
        # However a map is pooled, the channels are the last axis of what comes of it.
        of_map = (first + np.arange(width)).reshape(-1, num_channels)
        features.append(of_map[:, chosen[id(seam(network, end))]].ravel())
        first += width
    reader = f"head/{wide.first_of_head.name}/kernel"
    arrays[reader] = arrays[reader][np.concatenate(features)]
    return arrays
