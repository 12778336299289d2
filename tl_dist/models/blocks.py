"""The blocks of a network, from input to output: what `optimizer.layer_decay` counts."""

from __future__ import annotations

import re
from typing import Any

from tl_dist.models.backbones import Backbone

MOST = 25
"""Most blocks that are counted one by one: the 24 of ViT-L and its stem, the largest network for which decays by layer
were published (Bao et al., BEiT, arXiv 2106.08254)."""
TOGETHER = 3
"""blocks that count as one in a network with more"""


def depths(backbone: Backbone, network: Any) -> dict[str, int]:
    """Return the depth of each layer of `network` below the head, by name: 1 in the last block, then 2, 3, ...

    A block begins with each stage, and within a stage wherever `backbone.block` matches another name; the convolution
    that some networks have on top belongs to the last block. These are timm's blocks (`group_matcher`). In a network of
    more than `MOST` blocks, three blocks of a stage count as one: so the authors of ConvNeXt count their 36 as 12 and
    the stem (`optim_factory.py` of github.com/facebookresearch/ConvNeXt). Layers before the stem count with it.
    """
    blocks = _blocks(backbone, network)
    if len({*blocks.values()}) > MOST:
        blocks = {layer: (stage, block // TOGETHER) for layer, (stage, block) in blocks.items()}
    from_the_top = sorted({*blocks.values()}, reverse=True)
    depth = {block: k for k, block in enumerate(from_the_top, start=1)}
    return {layer: depth[block] for layer, block in blocks.items()}


def _blocks(backbone: Backbone, network: Any) -> dict[str, tuple[int, int]]:
    """Return layer -> (number of its stage, number of its block in that stage)."""
    _, *starts = (first for name, first in backbone.stages.items() if name != "top")
    stage = block = 0
    last = None
    numbers = {}
    for layer in network.layers:
        if layer.name in starts:
            stage, block, last = stage + 1, 0, None
        match = re.match(backbone.block, layer.name) if backbone.block else None
        if match:
            block += last not in (None, match[1])
            last = match[1]
        numbers[layer.name] = stage, block
    return numbers
