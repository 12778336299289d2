"""The blocks of a network, from input to output: what `optimizer.layer_decay` counts."""

from __future__ import annotations

import re
from typing import Any

from tl_dist.models.backbones import Backbone

MOST = 25
"""Blocks that are counted one by one: those of the largest network that decays by layer were published for, the 24 of
ViT-L and its stem (Bao et al., BEiT, arXiv 2106.08254)."""
TOGETHER = 3


def depths(backbone: Backbone, network: Any) -> dict[str, int]:
    """How deep each layer of `network` lies below the head, by its name: 1 in the last block, one more in each below.

    A block begins with each stage, and within a stage wherever `backbone.block` names another; the convolution that
    some networks have on top belongs to the last. These are timm's (`group_matcher`). In a network of more than `MOST`
    blocks three of a stage count as one, as the authors of ConvNeXt count the 36 of theirs: 12 and the stem
    (`optim_factory.py` of github.com/facebookresearch/ConvNeXt). What lies before the stem is as deep as that is.
    """
    blocks = _blocks(backbone, network)
    if len({*blocks.values()}) > MOST:
        blocks = {layer: (stage, block // TOGETHER) for layer, (stage, block) in blocks.items()}
    from_the_top = sorted({*blocks.values()}, reverse=True)
    depth = {block: k for k, block in enumerate(from_the_top, start=1)}
    return {layer: depth[block] for layer, block in blocks.items()}


def _blocks(backbone: Backbone, network: Any) -> dict[str, tuple[int, int]]:
    """Layer -> (number of its stage, number of its block in that stage)."""
    _, *starts = (first for name, first in backbone.stages.items() if name != "top")
    stage = block = 0
    last = None
    found = {}
    for layer in network.layers:
        if layer.name in starts:
            stage, block, last = stage + 1, 0, None
        named = re.match(backbone.block, layer.name) if backbone.block else None
        if named:
            block += last not in (None, named[1])
            last = named[1]
        found[layer.name] = stage, block
    return found
