"""The head that a network of the user has, or that a function of the user puts on a backbone."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import keras

from tl_dist.models import whole
from tl_dist.models.backbones import Backbone, seam


def below_head(backbone: Backbone, network: Any) -> int:
    """Return the number of layers below the head: all, but for a network that has a head."""
    names = [layer.name for layer in network.layers]
    return len(names) if backbone.head_from is None else names.index(backbone.head_from)


def with_head(backbone: Backbone, head: str | None, num_classes: int) -> Backbone:
    """Return the backbone with the head that the function `head` returns for so many classes."""
    if head is None:
        return backbone
    build = partial(_build_with_head, backbone.build, head, num_classes)
    return replace(backbone, build=build, head_from=whole.HEAD, gives=None)


def _build_with_head(build: Callable[..., Any], head: str, num_classes: int, input_shape: tuple[int, int, int]) -> Any:
    network = build(input_shape)
    top = whole.head(head, tuple(network.output.shape[1:]), num_classes)
    features = keras.layers.Identity(name=whole.HEAD)(network.output)
    return keras.Model(network.inputs, whole.copied(top, features), name=network.name)


def without_head(backbone: Backbone, network: Any) -> Any:
    """Return the network below its head, with the same layers."""
    return keras.Model(network.inputs, seam(network, below_head(backbone, network)), name=network.name)


def built(backbone: Backbone, input_shape: tuple[int, int, int]) -> tuple[Any, str | None]:
    """Build the network of a backbone; of one with a head, without the softmax or sigmoid in which it may end.

    Returns the name of that beside it.
    """
    network = backbone.build(input_shape)
    return (network, None) if backbone.head_from is None else (whole.with_logits(network), whole.activation_of(network))
