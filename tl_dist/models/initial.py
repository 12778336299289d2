"""Which variables of a network keep their random initialization, and that they are trained."""

from collections.abc import Iterable
from typing import Any

from tl_dist.config import ModelConfig
from tl_dist.models import network as networks
from tl_dist.models.backbones import Backbone
from tl_dist.models.own_head import below_head
from tl_dist.refusal import ExitCode, Refusal

MOVING = ("/moving_mean", "/moving_variance")
"""how the paths of a batch-norm layer's statistics end"""


def new_paths(backbone: Backbone, network: Any, config: ModelConfig, *, carried: bool) -> set[str]:
    """Return the paths of the backbone's variables that pretrained weights leave as they are.

    These are layers that the config reinitializes, a head of a function, and what a function draws in each call,
    unless all weights are `carried` over from another run.
    """
    chosen = []
    if config.reinitialize is not None:
        first = networks.first_trainable_layer(backbone, network, config.reinitialize, key="model.reinitialize")
        chosen += network.layers[first:]
    if config.head is not None:
        chosen += network.layers[below_head(backbone, network) :]
    if config.weights == "function" and not carried:
        chosen += [layer for layer in network.layers if layer.name in backbone.drawn]
    return {networks.backbone_path(layer, variable) for layer in chosen for variable in layer.weights}


def refuse_untrained(config: ModelConfig, train_from: str, frozen: Iterable[str], new: set[str]) -> None:
    """Refuse (64) if one of the `new` variables is frozen, and so would stay random."""
    untrained = [path for path in frozen if path in new and not path.endswith(MOVING)]
    if not untrained:
        return
    layer = untrained[0].split("/")[1]
    if config.reinitialize is None:
        what = f"layer '{layer}', whose weights the function draws at random, would never be trained."
        raise Refusal(what, fix=f"write 'train_from: {layer}', or a layer before it.", code=ExitCode.USAGE)
    raise Refusal(
        f"model.reinitialize '{config.reinitialize}' reaches below train_from '{train_from}': "
        f"{untrained[0]} would stay random.",
        fix=f"reinitialize from '{train_from}' or later, or train from '{config.reinitialize}'.",
        code=ExitCode.USAGE,
    )
