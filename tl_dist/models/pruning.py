"""A chain of convolutions with fewer channels: how it is built, and which of a wider one's channels it keeps.

Li et al., arXiv 1608.08710: of each convolution the filters of the smallest L1 norm go, and with each the slice of
the next layer that read it. What is left is an ordinary network, which needs no mask and no special kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tl_dist.models.backbones import Backbone

if TYPE_CHECKING:
    from tl_dist.models.classifier import Classifier


def narrowed(backbone: Backbone, share: float) -> Backbone:
    """The backbone without this share of the channels of each convolution; of one that is a `chain`."""
    return replace(backbone, build=partial(_build, backbone.build, share)) if share else backbone


def _build(
    build: Callable[[tuple[int, int, int]], Any], share: float, input_shape: tuple[int, int, int]
) -> Any:
    def narrow(layer: Any) -> Any:
        config = layer.get_config()
        if "filters" in config:
            config["filters"] = max(1, round(config["filters"] * (1 - share)))
        return type(layer).from_config(config)

    return keras.models.clone_model(build(input_shape), clone_function=narrow)


def kept(wide: Classifier, network: Any) -> dict[str, np.ndarray]:
    """What a narrower `network` of the same layers takes over from `wide`, by path: its weights, and those of the head.

    `network` says how many channels of each convolution there are, the weights of `wide` which.
    """
    arrays = {path: v.numpy() for path, v in {**wide.moving, **wide.frozen}.items()}
    channels = np.arange(wide.network.input_shape[-1])
    into = []  # each layer: which of its channels
    for layer in network.layers:
        into.append(channels)
        if layer.weights:
            kernel, bias = (f"backbone/{layer.name}/{part}" for part in ("kernel", "bias"))
            norms = np.abs(arrays[kernel]).sum(axis=(0, 1, 2), dtype=np.float64)
            inputs, channels = channels, np.sort(np.argsort(-norms, kind="stable")[: layer.filters])
            arrays[kernel] = arrays[kernel][:, :, inputs][..., channels]
            arrays[bias] = arrays[bias][channels]
    into.append(channels)
    features, first = [], 0
    for end, width, num_channels in zip(wide.stage_ends, wide.stage_widths, wide.stage_channels, strict=True):
        # However a map is pooled, the channels are the last axis of what comes of it.
        features.append((first + np.arange(width)).reshape(-1, num_channels)[:, into[end]].ravel())
        first += width
    reader = "head/hidden/kernel" if "head/hidden/kernel" in arrays else "head/logits/kernel"
    arrays[reader] = arrays[reader][np.concatenate(features)]
    return arrays
