"""ResNet (He et al., arXiv 1512.03385) and ResNetV2, with activations first (arXiv 1603.05027)."""

from __future__ import annotations

from collections.abc import Mapping

from tl_dist.models.backbones import Backbone, Preprocessing, of_keras


def _resnet(constructor: str, preprocessing: Preprocessing, stages: Mapping[str, str]) -> Backbone:
    return of_keras(
        constructor,
        preprocessing=preprocessing,
        stages=stages,
        block=r"conv\d_(block\d+)_",
        prunable=True,
    )


_V1_STAGES = {"stem": "conv1_pad"} | {f"conv{k}": f"conv{k}_block1_1_conv" for k in range(2, 6)}
_V2_STAGES = {
    "stem": "conv1_pad",
    **{f"conv{k}": f"conv{k}_block1_preact_bn" for k in range(2, 6)},
    "top": "post_bn",
}

RESNET50 = _resnet("ResNet50", "caffe", _V1_STAGES)
RESNET101 = _resnet("ResNet101", "caffe", _V1_STAGES)
RESNET152 = _resnet("ResNet152", "caffe", _V1_STAGES)
RESNET50V2 = _resnet("ResNet50V2", "tf", _V2_STAGES)
RESNET101V2 = _resnet("ResNet101V2", "tf", _V2_STAGES)
RESNET152V2 = _resnet("ResNet152V2", "tf", _V2_STAGES)
