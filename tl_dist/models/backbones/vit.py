"""Vision transformers as one flat graph of Keras's own layers: ViT and DeiT, and DINOv2 with and without registers.

Dosovitskiy et al., arXiv 2010.11929; Touvron et al., 2012.12877; Oquab et al., 2304.07193; Darcet et al., 2309.16588.
The output is tokens [batch, n, c]: the class token, the registers, and the patches row by row. Weights come from files
with timm's or transformers' names. The positions keep the grid of pretraining, and are resized in the graph to that of
the images by a fixed matrix for each axis, as the authors of each family resize theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tl_dist.models.backbones import Arrays, Backbone, Preprocessing

if TYPE_CHECKING:  # a record costs nothing until its network is built
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Shape:
    """The shape of a vision transformer."""

    width: int
    blocks: int
    heads: int
    patch: int
    grid: int  # positions along a side in pretraining
    registers: int = 0
    scaled: bool = False  # whether LayerScale follows attention and MLP (Touvron et al., arXiv 2103.17239)
    antialias: bool = True  # in resizing positions
    offset: float = 0.0  # added to the new number of positions where their scale is taken

    @property
    def leading(self) -> int:
        """Count the tokens before those of the patches: the class token and the registers."""
        return 1 + self.registers


def build(shape: Shape, input_shape: tuple[int, int, int]) -> Any:
    """Build the network for images [h, w, 3], whose sides are multiples of the patch; its weights are random."""
    import keras
    from keras import layers, ops

    rows, columns = (side // shape.patch for side in input_shape[:2])
    width, normal = shape.width, keras.initializers.TruncatedNormal(stddev=0.02)
    images = keras.Input(input_shape)
    x = layers.Conv2D(width, shape.patch, shape.patch, name="patch_embed")(images)
    x = layers.Reshape((rows * columns, width), name="patches")(x)
    # A bare variable is no layer: the kernels of these have a single input, which is 1.
    learnt = partial(layers.Dense, use_bias=False, kernel_initializer=normal)
    positions = learnt(shape.grid**2 * width, name="pos_embed")(ops.ones_like(x[:1, 0, :1]))
    if (rows, columns) == (shape.grid, shape.grid):
        positions = ops.reshape(positions, (1, rows * columns, width))
    else:
        of_rows, of_columns = (
            resized(shape.grid, to, antialias=shape.antialias, offset=shape.offset) for to in (rows, columns)
        )
        positions = ops.matmul(of_rows, ops.reshape(positions, (shape.grid, shape.grid * width)))
        positions = ops.matmul(of_columns, ops.reshape(positions, (rows, shape.grid, width)))
        positions = ops.reshape(positions, (1, rows * columns, width))
    x = ops.add(x, positions)
    token = learnt(shape.leading * width, name="tokens")(ops.ones_like(x[:, 0, :1]))
    x = layers.Concatenate(axis=1, name="embedded")([ops.reshape(token, (-1, shape.leading, width)), x])
    for k in range(shape.blocks):
        x = _block(shape, f"block{k}", x)
    x = layers.LayerNormalization(epsilon=1e-6, name="norm")(x)
    return keras.Model(images, x)


def _block(shape: Shape, name: str, x: Any) -> Any:
    """Return x + attention(norm(x)), and to that + MLP(norm)."""
    from keras import layers, ops

    size = shape.width // shape.heads
    y = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm1")(x)
    y = layers.MultiHeadAttention(shape.heads, size, name=f"{name}_attention")(y, y)
    x = layers.Add(name=f"{name}_attended")([x, _scaled(shape, f"{name}_scale1", y)])
    y = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm2")(x)
    y = layers.Dense(4 * shape.width, name=f"{name}_mlp1")(y)
    y = 0.5 * y * (1 + ops.erf(y / 2**0.5))  # Keras's GELU, which TensorFlow computes by a function that ONNX has not
    y = layers.Dense(shape.width, name=f"{name}_mlp2")(y)
    return layers.Add(name=f"{name}_output")([x, _scaled(shape, f"{name}_scale2", y)])


def _scaled(shape: Shape, name: str, x: Any) -> Any:
    """Return x times a learnt number for each channel, if the network has these: LayerScale."""
    from keras import initializers, layers, ops

    if not shape.scaled:
        return x
    learnt = layers.Dense(shape.width, use_bias=False, kernel_initializer=initializers.Constant(1e-5), name=name)
    return ops.multiply(x, learnt(ops.ones_like(x[:1, :1, :1])))


def resized(num: int, to: int, *, antialias: bool, offset: float = 0.0) -> NDArray[np.float32]:
    """Return the matrix [to, num] that resizes `num` values to `to` by cubic convolution, with half-pixel centres.

    As torch's `interpolate(mode="bicubic")`: with `antialias` the kernel is Pillow's (a = -0.5), as wide as what is
    made smaller needs, and its weights outside are left out; without it a = -0.75, and border values are repeated.
    """
    import numpy as np

    scale = num / (to + offset)
    wide = max(scale, 1.0) if antialias else 1.0
    a = -0.5 if antialias else -0.75
    matrix = np.zeros((to, num))
    for k in range(to):
        centre = (k + 0.5) * scale - 0.5
        taps = np.arange(int(np.floor(centre - 2 * wide)), int(np.ceil(centre + 2 * wide)) + 1)
        x = np.abs((taps - centre) / wide)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((x - 5) * x + 8) * x * a - 4 * a
        weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        if antialias:
            inside = (taps >= 0) & (taps < num)
            taps, weights = taps[inside], weights[inside]
        np.add.at(matrix[k], np.clip(taps, 0, num - 1), weights / weights.sum())
    return matrix.astype(np.float32)


_NAMES = (
    (r"^(vit|dinov2|deit|backbone|model)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
"""names of transformers, as regular expressions, and timm's"""


def of_torch(shape: Shape, stored: Mapping[str, NDArray[Any]]) -> Arrays:
    """Return the arrays of `build` from those of a file with timm's or transformers' names; a head is left out.

    Raises ValueError for a missing array, and for positions of another grid than the network's.
    """
    import numpy as np

    named = {}
    for name, array in stored.items():
        for pattern, timm in _NAMES:
            name = re.sub(pattern, timm, name)
        named[name] = array

    def take(name: str) -> NDArray[Any]:
        if name not in named:
            raise ValueError(f"it has no '{name}', in timm's names or transformers'")
        return np.asarray(named[name])

    positions, tokens = take("pos_embed")[0], [take("cls_token")[0]]
    tokens += [take("reg_token")[0]] if shape.registers else []
    of_tokens = len(positions) - shape.grid**2
    if of_tokens not in (0, 1):
        raise ValueError(f"its {len(positions)} positions are not those of {shape.grid} x {shape.grid} patches")
    if of_tokens:  # the class token has a position of its own
        tokens[0] = tokens[0] + positions[:1]
    arrays: Arrays = {
        "patch_embed/kernel": take("patch_embed.proj.weight").transpose(2, 3, 1, 0),
        "patch_embed/bias": take("patch_embed.proj.bias"),
        "pos_embed/kernel": positions[of_tokens:].reshape(1, -1),
        "tokens/kernel": np.concatenate(tokens).reshape(1, -1),
        "norm/gamma": take("norm.weight"),
        "norm/beta": take("norm.bias"),
    }
    for k in range(shape.blocks):
        arrays |= {f"block{k}_{name}": array for name, array in _of_block(shape, f"blocks.{k}", named, take)}
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def _of_block(
    shape: Shape, prefix: str, named: Mapping[str, Any], take: Callable[[str], Any]
) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a block by name."""
    import numpy as np

    heads = (shape.heads, shape.width // shape.heads)
    for k in (1, 2):
        yield f"norm{k}/gamma", take(f"{prefix}.norm{k}.weight")
        yield f"norm{k}/beta", take(f"{prefix}.norm{k}.bias")
        yield f"mlp{k}/kernel", take(f"{prefix}.mlp.fc{k}.weight").T
        yield f"mlp{k}/bias", take(f"{prefix}.mlp.fc{k}.bias")
        if shape.scaled:
            yield f"scale{k}/kernel", take(f"{prefix}.ls{k}.gamma")[None]
    parts = ("query", "key", "value")
    for kind in ("weight", "bias"):
        if f"{prefix}.attn.qkv.{kind}" in named:
            of_parts = np.split(take(f"{prefix}.attn.qkv.{kind}"), 3)
        else:
            of_parts = [take(f"{prefix}.attn.{part}.{kind}") for part in parts]
        for part, array in zip(parts, of_parts, strict=True):
            name = "kernel" if kind == "weight" else "bias"
            yield f"attention/{part}/{name}", array.T.reshape(*array.T.shape[:-1], *heads)
    yield "attention/attention_output/kernel", take(f"{prefix}.attn.proj.weight").T.reshape(*heads, shape.width)
    yield "attention/attention_output/bias", take(f"{prefix}.attn.proj.bias")


def record(name: str, shape: Shape, preprocessing: Preprocessing) -> Backbone:
    """Return the record of a transformer: each block is a stage."""
    blocks = {f"block{k}": f"block{k}_norm1" for k in range(shape.blocks)}
    return Backbone(
        name=name,
        build=partial(build, shape),
        input_size=224,
        min_size=2 * shape.patch,
        preprocessing=preprocessing,
        stages={"stem": "patch_embed", **blocks, "top": "norm"},
        batch_norm=False,
        patch=shape.patch,
        leading_tokens=shape.leading,
        of_torch=partial(of_torch, shape),
    )


_SMALL, _BASE, _LARGE = (384, 12, 6), (768, 12, 12), (1024, 24, 16)


def _vit(name: str, size: tuple[int, int, int], preprocessing: Preprocessing) -> Backbone:
    return record(name, Shape(*size, patch=16, grid=14), preprocessing)


def _dinov2(name: str, size: tuple[int, int, int], registers: int = 0) -> Backbone:
    """Resize positions as the authors' hub does: with registers as Pillow would, without by a slightly larger scale."""
    shape = Shape(*size, patch=14, grid=37, registers=registers, scaled=True, antialias=registers > 0)
    return record(name, replace(shape, offset=0.0 if registers else 0.1), "torch")


VIT_SMALL, VIT_BASE = _vit("vit_small", _SMALL, "tf"), _vit("vit_base", _BASE, "tf")
VIT_LARGE = _vit("vit_large", _LARGE, "tf")
DEIT_SMALL, DEIT_BASE = _vit("deit_small", _SMALL, "torch"), _vit("deit_base", _BASE, "torch")
DINOV2_SMALL, DINOV2_BASE = _dinov2("dinov2_small", _SMALL), _dinov2("dinov2_base", _BASE)
DINOV2_LARGE = _dinov2("dinov2_large", _LARGE)
DINOV2_REG_SMALL = _dinov2("dinov2_reg_small", _SMALL, 4)
DINOV2_REG_BASE, DINOV2_REG_LARGE = _dinov2("dinov2_reg_base", _BASE, 4), _dinov2("dinov2_reg_large", _LARGE, 4)
