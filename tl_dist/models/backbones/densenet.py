"""DenseNet (Huang et al., arXiv 1608.06993): 121, 169 and 201 layers."""

from __future__ import annotations

from tl_dist.models.backbones import Backbone, of_keras


def _densenet(constructor: str) -> Backbone:
    return of_keras(
        constructor,
        preprocessing="torch",
        stages={"conv1": "conv1_conv"} | {f"conv{k}": f"conv{k}_block1_0_bn" for k in range(2, 6)},
        block=r"conv\d_(block\d+)_",
        prunable=True,
    )


DENSENET121 = _densenet("DenseNet121")
DENSENET169 = _densenet("DenseNet169")
DENSENET201 = _densenet("DenseNet201")
