"""EfficientNet-Lite, TensorFlow's variant of EfficientNet (arXiv 1905.11946) for small devices.

No squeeze and excitation, ReLU6, stem and top of one width, first and last stage of one block: the authors' code and
accuracies are in tensorflow/tpu, models/official/efficientnet/lite. Weights come from files with timm's names, or with
those of Melas-Kyriazi's port.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from tl_dist.models.backbones import Arrays, Backbone, from_torch

_STAGES = (
    # kernel, stride, expansion, filters, repeats
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)  # fmt: skip


class Block(NamedTuple):
    """One inverted residual block."""

    stage: int
    repeat: int
    kernel: int
    stride: int
    expansion: int
    filters: int

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the names of its convolutions."""
        return ("expand", "depthwise", "project")[self.expansion == 1 :]


def _blocks(width: float, depth: float) -> list[Block]:
    blocks = []
    for stage, (kernel, stride, expansion, filters, repeats) in enumerate(_STAGES):
        wide = max(8, int(width * filters + 4) // 8 * 8)
        wide += 8 if wide < 0.9 * width * filters else 0
        repeats = repeats if stage in (0, len(_STAGES) - 1) else math.ceil(depth * repeats)
        blocks += [Block(stage, k, kernel, 1 if k else stride, expansion, wide) for k in range(repeats)]
    return blocks


def build(name: str, blocks: list[Block], input_shape: tuple[int, int, int]) -> Any:
    """Build the network with random weights."""
    import keras
    from keras import layers

    def normed(x: Any, of: str, convolution: Any, *, relu: bool = True) -> Any:
        x = convolution(padding="same", use_bias=False, name=f"{of}_conv")(x)
        x = layers.BatchNormalization(epsilon=1e-3, name=f"{of}_bn")(x)
        return layers.ReLU(6.0, name=f"{of}_relu")(x) if relu else x

    images = keras.Input(input_shape)
    x = normed(images, "stem", partial(layers.Conv2D, 32, 3, 2))
    for k, block in enumerate(blocks):
        before, of = x, f"block{k}"
        if block.expansion > 1:
            x = normed(x, f"{of}_expand", partial(layers.Conv2D, block.expansion * x.shape[-1], 1))
        x = normed(x, f"{of}_depthwise", partial(layers.DepthwiseConv2D, block.kernel, block.stride))
        x = normed(x, f"{of}_project", partial(layers.Conv2D, block.filters, 1), relu=False)
        if block.repeat > 0:
            x = layers.Add(name=f"{of}_add")([before, x])
    return keras.Model(images, normed(x, "top", partial(layers.Conv2D, 1280, 1)), name=name)


def of_torch(blocks: list[Block], stored: Mapping[str, Any]) -> Arrays:
    """Return the arrays of `build` from those with timm's or Melas-Kyriazi's names; a classifier is left out.

    Raises ValueError for another network's.
    """
    ported = "_conv_stem.weight" in stored
    names = {"stem": ("conv_stem", "bn1"), "top": ("conv_head", "bn2")}
    if ported:
        names = {"stem": ("_conv_stem", "_bn0"), "top": ("_conv_head", "_bn1")}
    for k, block in enumerate(blocks):
        expands = block.expansion > 1
        of_timm = ("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw")
        for number, (part, conv) in enumerate(zip(block.parts, of_timm, strict=True)):
            prefix = f"blocks.{block.stage}.{block.repeat}"
            names[f"block{k}_{part}"] = f"{prefix}.{conv}", f"{prefix}.bn{number + 1}"
            if ported:
                names[f"block{k}_{part}"] = f"_blocks.{k}._{part}_conv", f"_blocks.{k}._bn{number + 1 - expands}"
    places = {}
    for own, (conv, norm) in names.items():
        places[f"{own}_conv/kernel"] = f"{conv}.weight"
        places |= {f"{own}_bn/{variable}": f"{norm}.{theirs}" for variable, theirs in _OF_NORM.items()}
    arrays = from_torch(stored, places, r"\.num_batches_tracked|^(?:classifier|_fc)\.(?:weight|bias)")
    depthwise = (name for name in arrays if name.endswith("_depthwise_conv/kernel"))
    return arrays | {name: arrays[name].swapaxes(2, 3).copy() for name in depthwise}


_OF_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def _lite(number: int, width: float, depth: float, input_size: int, top1: float) -> Backbone:
    name, blocks = f"efficientnet_lite{number}", _blocks(width, depth)
    firsts = {
        f"stage{block.stage}": f"block{k}_{block.parts[0]}_conv" for k, block in enumerate(blocks) if not block.repeat
    }
    return Backbone(
        name=name,
        build=partial(build, name, blocks),
        input_size=input_size,
        min_size=32,
        preprocessing="tf",
        stages={"stem": "stem_conv", **firsts, "top": "top_conv"},
        block=r"(block\d+)_",
        residual=rf"(block(?:{'|'.join(str(k) for k, block in enumerate(blocks) if block.repeat)}))_project_bn$",
        of_torch=partial(of_torch, blocks),
        imagenet_top1=top1,
    )


EFFICIENTNET_LITE0 = _lite(0, 1.0, 1.0, 224, 0.751)
EFFICIENTNET_LITE1 = _lite(1, 1.0, 1.1, 240, 0.767)
EFFICIENTNET_LITE2 = _lite(2, 1.1, 1.2, 260, 0.776)
EFFICIENTNET_LITE3 = _lite(3, 1.2, 1.4, 280, 0.798)
EFFICIENTNET_LITE4 = _lite(4, 1.4, 1.8, 300, 0.815)
