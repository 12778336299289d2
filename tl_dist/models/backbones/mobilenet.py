"""MobileNetV2 (Sandler et al., arXiv 1801.04381) and MobileNetV3 (Howard et al., arXiv 1905.02244)."""

from __future__ import annotations

from collections.abc import Mapping

from tl_dist.models.backbones import Backbone, Preprocessing, of_keras


def _mobilenet(constructor: str, preprocessing: Preprocessing, stages: Mapping[str, str]) -> Backbone:
    return of_keras(
        constructor,
        preprocessing=preprocessing,
        stages=stages,
        prunable=constructor == "MobileNetV2",  # V3: squeeze and excitation reads the channels as well
    )


def _v3_stages(first_block: str, num_blocks: int) -> Mapping[str, str]:
    blocks = {f"block{k}": f"expanded_conv_{k}_expand" for k in range(1, num_blocks)}
    return {"stem": "conv", "block0": first_block} | blocks | {"top": "conv_1"}


_V2_STAGES = {
    "stem": "Conv1",
    "block0": "expanded_conv_depthwise",
    **{f"block{k}": f"block_{k}_expand" for k in range(1, 17)},
    "top": "Conv_1",
}

MOBILENETV2 = _mobilenet("MobileNetV2", "tf", _V2_STAGES)
# The first block of the small network reduces the resolution, so it pads first.
MOBILENETV3SMALL = _mobilenet("MobileNetV3Small", "included", _v3_stages("expanded_conv_depthwise_pad", 11))
MOBILENETV3LARGE = _mobilenet("MobileNetV3Large", "included", _v3_stages("expanded_conv_depthwise", 15))
