"""Keras's own networks (`keras.applications`), a table for each family, and a tiny one.

Accuracies are of https://keras.io/api/applications, MobileNetV3's of Keras's mobilenet_v3.py; none was measured here.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from tl_dist.models.backbones import Arrays, Backbone, application, from_torch, renamed


def of_keras(constructor: str, top1: float, *, input_size: int = 224, min_size: int = 32, **more: Any) -> Backbone:
    """Return the record of a network of keras.applications; `more` are other fields of `Backbone`."""
    return Backbone(
        name=constructor.lower(),
        build=partial(application, constructor),
        input_size=input_size,
        min_size=min_size,
        pretrained=partial(application, constructor, weights="imagenet"),
        imagenet_top1=top1,
        **more,
    )


# VGG: Simonyan and Zisserman, arXiv 1409.1556.
_VGG: dict[str, Any] = {
    "preprocessing": "caffe",
    "stages": {f"block{k}": f"block{k}_conv1" for k in range(1, 6)},
    "block": r"block\d_(conv\d)",
    "batch_norm": False,
    "prunable": True,
}
VGG16 = of_keras("VGG16", 0.713, **_VGG)
VGG19 = of_keras("VGG19", 0.713, **_VGG)

# ResNet: He et al., arXiv 1512.03385. ResNetV2, with activations first: arXiv 1603.05027.
_RESNET: dict[str, Any] = {
    "preprocessing": "caffe",
    "stages": {"stem": "conv1_pad"} | {f"conv{k}": f"conv{k}_block1_1_conv" for k in range(2, 6)},
    "block": r"conv\d_(block\d+)_",
    "prunable": True,
}
_RESNET_V2 = _RESNET | {
    "preprocessing": "tf",
    "stages": {
        "stem": "conv1_pad",
        **{f"conv{k}": f"conv{k}_block1_preact_bn" for k in range(2, 6)},
        "top": "post_bn",
    },
}
RESNET50 = of_keras("ResNet50", 0.749, **_RESNET)
RESNET101 = of_keras("ResNet101", 0.764, **_RESNET)
RESNET152 = of_keras("ResNet152", 0.766, **_RESNET)
RESNET50V2 = of_keras("ResNet50V2", 0.760, **_RESNET_V2)
RESNET101V2 = of_keras("ResNet101V2", 0.772, **_RESNET_V2)
RESNET152V2 = of_keras("ResNet152V2", 0.780, **_RESNET_V2)

# DenseNet: Huang et al., arXiv 1608.06993.
_DENSENET: dict[str, Any] = {
    "preprocessing": "torch",
    "stages": {"conv1": "conv1_conv"} | {f"conv{k}": f"conv{k}_block1_0_bn" for k in range(2, 6)},
    "block": r"conv\d_(block\d+)_",
    "prunable": True,
}
DENSENET121 = of_keras("DenseNet121", 0.750, **_DENSENET)
DENSENET169 = of_keras("DenseNet169", 0.762, **_DENSENET)
DENSENET201 = of_keras("DenseNet201", 0.773, **_DENSENET)

# Inception V3 (arXiv 1512.00567), Inception-ResNet V2 (arXiv 1602.07261) and Xception (arXiv 1610.02357).
# Most layers of the first two have no name of their own. The numbers here are the ones that Keras gives in the first
# network of a process, and `application` in every network. In a stage with branches, the longest branch comes first.
_INCEPTION: dict[str, Any] = {"input_size": 299, "preprocessing": "tf"}
_V3_MIXED = (8, 15, 22, 27, 34, 44, 54, 64, 72, 80, 89)
INCEPTIONV3 = of_keras(
    "InceptionV3",
    0.779,
    min_size=75,
    stages={"stem": "conv2d"} | {f"mixed{k}": f"conv2d_{layer}" for k, layer in enumerate(_V3_MIXED)},
    **_INCEPTION,
)
# The first layer of each residual block. Blocks of block35 have six layers without a name, later ones four.
_RESIDUAL_FIRSTS = (*range(15, 75, 6), *range(77, 157, 4), *range(164, 204, 4))
INCEPTIONRESNETV2 = of_keras(
    "InceptionResNetV2",
    0.803,
    min_size=75,
    stages={
        "stem": "conv2d",
        "mixed_5b": "conv2d_8",
        "block35": "conv2d_15",
        "mixed_6a": "conv2d_73",
        "block17": "conv2d_77",
        "mixed_7a": "conv2d_160",
        "block8": "conv2d_164",
        "top": "conv_7b",
    },
    block=f"(conv2d_(?:{'|'.join(map(str, _RESIDUAL_FIRSTS))}))$",
    **_INCEPTION,
)
XCEPTION = of_keras(
    "Xception",
    0.790,
    min_size=71,
    stages={
        "block1": "block1_conv1",
        "block2": "block2_sepconv1",
        **{f"block{k}": f"block{k}_sepconv1_act" for k in range(3, 14)},
        "block14": "block14_sepconv1",
    },
    **_INCEPTION,
)

# MobileNetV2: Sandler et al., arXiv 1801.04381. MobileNetV3: Howard et al., arXiv 1905.02244.
MOBILENETV2 = of_keras(
    "MobileNetV2",
    0.713,
    preprocessing="tf",
    stages={
        "stem": "Conv1",
        "block0": "expanded_conv_depthwise",
        **{f"block{k}": f"block_{k}_expand" for k in range(1, 17)},
        "top": "Conv_1",
    },
    prunable=True,  # unlike V3, whose squeeze and excitation reads the channels as well
)


def _mobilenet_v3(constructor: str, top1: float, first_block: str, num_blocks: int) -> Backbone:
    blocks = {f"block{k}": f"expanded_conv_{k}_expand" for k in range(1, num_blocks)}
    stages = {"stem": "conv", "block0": first_block} | blocks | {"top": "conv_1"}
    return of_keras(constructor, top1, preprocessing="inside", stages=stages)


# The first block of the small network reduces the resolution, so it pads first.
MOBILENETV3SMALL = _mobilenet_v3("MobileNetV3Small", 0.681, "expanded_conv_depthwise_pad", 11)
MOBILENETV3LARGE = _mobilenet_v3("MobileNetV3Large", 0.756, "expanded_conv_depthwise", 15)

# EfficientNet (Tan and Le, arXiv 1905.11946) and EfficientNetV2 (arXiv 2104.00298). Their stochastic depth is off in
# inference mode, in which tl_dist runs every backbone.
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


def _efficientnet(size: str, top1: float, input_size: int, num_blocks: int) -> Backbone:
    is_v2 = size.startswith("V2")
    stem, block1 = ("stem_conv", "block1a_project_conv") if is_v2 else ("stem_conv_pad", "block1a_dwconv")
    blocks = {f"block{k}": f"block{k}a_expand_conv" for k in range(2, num_blocks + 1)}
    more: dict[str, Any] = {} if is_v2 else {"adapt": square_the_deviation}
    return of_keras(
        f"EfficientNet{size}",
        top1,
        input_size=input_size,
        preprocessing="inside",
        stages={"stem": stem, "block1": block1} | blocks | {"top": "top_conv"},
        block=r"block\d([a-z]+)_",
        residual=r"(block\d[a-z]+)_drop$",
        **more,
    )


EFFICIENTNETB0 = _efficientnet("B0", 0.771, 224, 7)
EFFICIENTNETB1 = _efficientnet("B1", 0.791, 240, 7)
EFFICIENTNETB2 = _efficientnet("B2", 0.801, 260, 7)
EFFICIENTNETB3 = _efficientnet("B3", 0.816, 300, 7)
EFFICIENTNETB4 = _efficientnet("B4", 0.829, 380, 7)
EFFICIENTNETB5 = _efficientnet("B5", 0.836, 456, 7)
EFFICIENTNETB6 = _efficientnet("B6", 0.840, 528, 7)
EFFICIENTNETB7 = _efficientnet("B7", 0.843, 600, 7)
EFFICIENTNETV2B0 = _efficientnet("V2B0", 0.787, 224, 6)
EFFICIENTNETV2B1 = _efficientnet("V2B1", 0.798, 240, 6)
EFFICIENTNETV2B2 = _efficientnet("V2B2", 0.805, 260, 6)
EFFICIENTNETV2B3 = _efficientnet("V2B3", 0.820, 300, 6)
EFFICIENTNETV2S = _efficientnet("V2S", 0.839, 384, 6)
EFFICIENTNETV2M = _efficientnet("V2M", 0.853, 480, 7)
EFFICIENTNETV2L = _efficientnet("V2L", 0.857, 480, 7)


# ConvNeXt: Liu et al., arXiv 2201.03545.
_CONVNEXT_NAMES = (
    (r"^(?:convnext\.)?(?:encoder\.)?", ""),
    (r"^embeddings\.patch_embeddings\.|^downsample_layers\.0\.0\.", "stem.0."),
    (r"^embeddings\.layernorm\.|^downsample_layers\.0\.1\.", "stem.1."),
    (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"\.downsampling_layer\.", ".downsample."),
    (r"^(stages\.\d)\.(?:layers\.)?(\d+)\.", r"\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.layernorm\.", ".norm."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"^(?:layer)?norm\.", "head.norm."),
)
"""names of transformers and of the authors, as regular expressions, and timm's"""


def convnext_of_torch(size: str, blocks: tuple[int, ...], stored: Mapping[str, Any]) -> Arrays:
    """Return the arrays of a ConvNeXt from those with timm's, transformers' or the authors' names, without a head.

    Raises ValueError for another network's.
    """
    named = renamed(stored, _CONVNEXT_NAMES)
    prefix = f"convnext_{size.lower()}"
    stem, down = f"{prefix}_stem", f"{prefix}_downsampling"
    layers = {f"{stem}/{stem}_conv": "stem.0", f"{stem}/{stem}_layernorm": "stem.1", "layer_normalization": "head.norm"}
    for k in range(3):
        layers[f"{down}_block_{k}/{down}_layernorm_{k}"] = f"stages.{k + 1}.downsample.0"
        layers[f"{down}_block_{k}/{down}_conv_{k}"] = f"stages.{k + 1}.downsample.1"
    places: dict[str, str] = {}
    every = [(stage, k) for stage, num_blocks in enumerate(blocks) for k in range(num_blocks)]
    for number, (stage, k) in enumerate(every):
        own, theirs = f"{prefix}_stage_{stage}_block_{k}", f"stages.{stage}.blocks.{k}"
        layers |= {f"{own}_depthwise_conv": f"{theirs}.conv_dw", f"{own}_layernorm": f"{theirs}.norm"}
        layers |= {f"{own}_pointwise_conv_{j}": f"{theirs}.mlp.fc{j}" for j in (1, 2)}
        # Keras gives this variable no name of its own.
        places[f"{own}_layer_scale/variable{f'_{number}' if number else ''}"] = f"{theirs}.gamma"
    for own, theirs in layers.items():
        weight, bias = ("gamma", "beta") if "norm" in own else ("kernel", "bias")
        places |= {f"{own}/{weight}": f"{theirs}.weight", f"{own}/{bias}": f"{theirs}.bias"}
    return from_torch(named, places, r"^(?:head|classifier|head\.fc)\.(?:weight|bias)")


def _convnext(size: str, top1: float) -> Backbone:
    prefix = f"convnext_{size.lower()}"
    stages = {"stem": f"{prefix}_stem", "stage0": f"{prefix}_stage_0_block_0_depthwise_conv"}
    return of_keras(
        f"ConvNeXt{size}",
        top1,
        preprocessing="inside",
        stages=stages | {f"stage{k}": f"{prefix}_downsampling_block_{k - 1}" for k in range(1, 4)},
        block=rf"{prefix}_stage_\d_(block_\d+)_",
        residual=rf"{prefix}_(stage_\d_block_\d+)_identity$",
        batch_norm=False,
        of_torch=partial(convnext_of_torch, size, (3, 3, 9 if size == "Tiny" else 27, 3)),
    )


CONVNEXTTINY = _convnext("Tiny", 0.813)
CONVNEXTSMALL = _convnext("Small", 0.823)
CONVNEXTBASE = _convnext("Base", 0.853)
CONVNEXTLARGE = _convnext("Large", 0.863)
CONVNEXTXLARGE = _convnext("XLarge", 0.867)


def _tiny(input_shape: tuple[int, int, int]) -> Any:
    """Build a VGG of 24,000 parameters without pretrained weights, for tests, smoke runs and examples."""
    import keras

    x = inputs = keras.Input(input_shape)
    for block, filters in enumerate((16, 32, 64), start=1):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"block{block}_conv1")(x)
        x = keras.layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
    return keras.Model(inputs, x, name="tiny")


TINY = Backbone(
    name="tiny",
    build=_tiny,
    input_size=32,
    min_size=8,
    preprocessing="tf",
    stages={f"block{k}": f"block{k}_conv1" for k in (1, 2, 3)},
    batch_norm=False,
    prunable=True,
)
