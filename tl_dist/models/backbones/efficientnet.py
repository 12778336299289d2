"""EfficientNet (Tan and Le, arXiv 1905.11946) and EfficientNetV2 (arXiv 2104.00298).

Their stochastic depth is off in inference mode, in which tl_dist runs every backbone.
"""

from __future__ import annotations

from typing import Any

from tl_dist.models.backbones import Arrays, Backbone, of_keras

_IMAGENET_STD = (0.229, 0.224, 0.225)


def square_the_deviation(arrays: Arrays) -> Arrays:
    """Square `normalization/variance` if the Keras file stores the standard deviation there.

    Keras's ImageNet files for B0 to B7 do, and `weights="imagenet"` adds a layer that divides by the root of
    the deviation once more (tensorflow issue 49930, keras issue 16392). `build` has no such layer, so the
    variance itself is corrected. A network that was built with `weights=None` stores a true variance.
    """
    import numpy as np

    variance = arrays["normalization/variance"]
    if not np.allclose(variance, _IMAGENET_STD, rtol=1e-3):
        return arrays
    return arrays | {"normalization/variance": variance * np.asarray(_IMAGENET_STD, variance.dtype)}


def _efficientnet(
    constructor: str, input_size: int, stem: str, block1: str, num_blocks: int, **more: Any
) -> Backbone:
    return of_keras(
        constructor,
        input_size=input_size,
        preprocessing="included",
        stages={
            "stem": stem,
            "block1": block1,
            **{f"block{k}": f"block{k}a_expand_conv" for k in range(2, num_blocks + 1)},
            "top": "top_conv",
        },
        block=r"block\d([a-z]+)_",
        **more,
    )


def _v1(constructor: str, input_size: int) -> Backbone:
    first = ("stem_conv_pad", "block1a_dwconv")
    return _efficientnet(constructor, input_size, *first, num_blocks=7, adapt=square_the_deviation)


def _v2(constructor: str, input_size: int, num_blocks: int) -> Backbone:
    return _efficientnet(constructor, input_size, "stem_conv", "block1a_project_conv", num_blocks)


EFFICIENTNETB0 = _v1("EfficientNetB0", 224)
EFFICIENTNETB1 = _v1("EfficientNetB1", 240)
EFFICIENTNETB2 = _v1("EfficientNetB2", 260)
EFFICIENTNETB3 = _v1("EfficientNetB3", 300)
EFFICIENTNETB4 = _v1("EfficientNetB4", 380)
EFFICIENTNETB5 = _v1("EfficientNetB5", 456)
EFFICIENTNETB6 = _v1("EfficientNetB6", 528)
EFFICIENTNETB7 = _v1("EfficientNetB7", 600)
EFFICIENTNETV2B0 = _v2("EfficientNetV2B0", 224, 6)
EFFICIENTNETV2B1 = _v2("EfficientNetV2B1", 240, 6)
EFFICIENTNETV2B2 = _v2("EfficientNetV2B2", 260, 6)
EFFICIENTNETV2B3 = _v2("EfficientNetV2B3", 300, 6)
EFFICIENTNETV2S = _v2("EfficientNetV2S", 384, 6)
EFFICIENTNETV2M = _v2("EfficientNetV2M", 480, 7)
EFFICIENTNETV2L = _v2("EfficientNetV2L", 480, 7)
