"""DenseNet (Huang et al., arXiv 1608.06993): 121, 169 and 201 layers."""

from __future__ import annotations

from functools import partial

from tl_dist.models.backbones import Backbone, application


def _densenet(constructor: str) -> Backbone:
    return Backbone(
        name=constructor.lower(),
        build=partial(application, constructor),
        input_size=224,
        min_size=32,
        preprocessing="torch",
        stages={"conv1": "conv1_conv"} | {f"conv{k}": f"conv{k}_block1_0_bn" for k in range(2, 6)},
        block=r"conv\d_(block\d+)_",
        pretrained=partial(application, constructor, weights="imagenet"),
        prunable=True,
    )


DENSENET121 = _densenet("DenseNet121")
DENSENET169 = _densenet("DenseNet169")
DENSENET201 = _densenet("DenseNet201")
