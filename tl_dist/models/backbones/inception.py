"""Inception V3 (arXiv 1512.00567), Inception-ResNet V2 (arXiv 1602.07261) and Xception (arXiv 1610.02357).

Most layers of the first two have no name of their own. The numbers here are the ones that Keras gives in the first
network of a process, and `application` in every network. In a stage with branches, the longest branch comes first.
"""

from __future__ import annotations

from collections.abc import Mapping

from tl_dist.models.backbones import Backbone, of_keras


def _inception(
    constructor: str, min_size: int, stages: Mapping[str, str], block: str | None = None
) -> Backbone:
    return of_keras(
        constructor,
        input_size=299,
        min_size=min_size,
        preprocessing="tf",
        stages=stages,
        block=block,
    )


_V3_MIXED = (8, 15, 22, 27, 34, 44, 54, 64, 72, 80, 89)
_V3_STAGES = {"stem": "conv2d"} | {f"mixed{k}": f"conv2d_{layer}" for k, layer in enumerate(_V3_MIXED)}
_RESNET_STAGES = {
    "stem": "conv2d",
    "mixed_5b": "conv2d_8",
    "block35": "conv2d_15",
    "mixed_6a": "conv2d_73",
    "block17": "conv2d_77",
    "mixed_7a": "conv2d_160",
    "block8": "conv2d_164",
    "top": "conv_7b",
}
# The first layer of each residual block. Blocks of block35 have six layers without a name, later ones four.
_RESNET_FIRSTS = (*range(15, 75, 6), *range(77, 157, 4), *range(164, 204, 4))
_RESNET_BLOCK = f"(conv2d_(?:{'|'.join(map(str, _RESNET_FIRSTS))}))$"
_XCEPTION_STAGES = {
    "block1": "block1_conv1",
    "block2": "block2_sepconv1",
    **{f"block{k}": f"block{k}_sepconv1_act" for k in range(3, 14)},
    "block14": "block14_sepconv1",
}

INCEPTIONV3 = _inception("InceptionV3", 75, _V3_STAGES)
INCEPTIONRESNETV2 = _inception("InceptionResNetV2", 75, _RESNET_STAGES, _RESNET_BLOCK)
XCEPTION = _inception("Xception", 71, _XCEPTION_STAGES)
