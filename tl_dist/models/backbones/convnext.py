"""ConvNeXt (Liu et al., arXiv 2201.03545): tiny to extra large."""

from __future__ import annotations

from tl_dist.models.backbones import Backbone, of_keras


def _convnext(size: str) -> Backbone:
    constructor = f"ConvNeXt{size}"
    prefix = f"convnext_{size.lower()}"
    return of_keras(
        constructor,
        preprocessing="included",
        stages={
            "stem": f"{prefix}_stem",
            "stage0": f"{prefix}_stage_0_block_0_depthwise_conv",
            **{f"stage{k}": f"{prefix}_downsampling_block_{k - 1}" for k in range(1, 4)},
        },
        block=rf"{prefix}_stage_\d_(block_\d+)_",
        batch_norm=False,
    )


CONVNEXTTINY = _convnext("Tiny")
CONVNEXTSMALL = _convnext("Small")
CONVNEXTBASE = _convnext("Base")
CONVNEXTLARGE = _convnext("Large")
CONVNEXTXLARGE = _convnext("XLarge")
