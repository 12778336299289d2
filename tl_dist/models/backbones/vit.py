"""Vision transformers as one flat graph of Keras's own layers: ViT, DeiT, DINOv2, and the towers of SigLIP and CLIP.

Dosovitskiy et al., arXiv 2010.11929; Touvron et al., 2012.12877; Oquab et al., 2304.07193; Darcet et al., 2309.16588;
Zhai et al., 2303.15343; Tschannen et al., 2502.14786; Radford et al., 2103.00020. The output is tokens [batch, n, c]:
the class token and the registers, or the token that SigLIP's head pools, and the patches row by row. Weights come from
files with timm's or transformers' names. The positions keep the grid of pretraining, and are resized in the graph to
that of the images by a fixed matrix for each axis, as the authors of each family resize theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from tl_dist.models.backbones import Arrays, Backbone, Preprocessing, Scaling, renamed

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
    mlp: int | None = None  # width of the hidden layer of an MLP, if it is not four times that of a token
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    epsilon: float = 1e-6
    pre_norm: bool = False  # whether tokens are normalized before the blocks, and patches have no bias: CLIP
    attention_pool: bool = False  # whether a head pools the patches, and no class token is among them: SigLIP

    @property
    def leading(self) -> int:
        """Count the tokens before those of the patches within blocks: the class token and the registers."""
        return 0 if self.attention_pool else 1 + self.registers


def build(shape: Shape, input_shape: tuple[int, int, int]) -> Any:
    """Build the network for images [h, w, 3], whose sides are multiples of the patch; its weights are random."""
    import keras
    from keras import layers, ops

    rows, columns = (side // shape.patch for side in input_shape[:2])
    width = shape.width
    images = keras.Input(input_shape)
    embed = layers.Conv2D(width, shape.patch, shape.patch, use_bias=not shape.pre_norm, name="patch_embed")
    x = layers.Reshape((rows * columns, width), name="patches")(embed(images))
    positions = _learnt("pos_embed", shape.grid**2 * width, x[:1, 0, :1])
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
    if shape.leading:
        token = _learnt("tokens", shape.leading * width, x[:, 0, :1])
        x = layers.Concatenate(axis=1, name="embedded")([ops.reshape(token, (-1, shape.leading, width)), x])
    if shape.pre_norm:
        x = _norm(shape, "norm_pre", x)
    for k in range(shape.blocks):
        y = _norm(shape, f"block{k}_norm1", x)
        y = _scaled(shape, f"block{k}_scale1", _attention(shape, f"block{k}", y, y))
        x = _mlp(shape, f"block{k}", layers.Add(name=f"block{k}_attended")([x, y]))
    x = _norm(shape, "norm", x)
    if shape.attention_pool:
        probe = ops.reshape(_learnt("probe", width, x[:, 0, :1]), (-1, 1, width))
        pooled = _mlp(shape, "pool", _attention(shape, "pool", probe, x))
        x = layers.Concatenate(axis=1, name="pooled")([pooled, x])
    return keras.Model(images, x)


def _learnt(name: str, num: int, like: Any) -> Any:
    """Return `num` learnt numbers for each row of `like` [rows, 1].

    A bare variable is no layer: these are the kernel of one, whose input is 1.
    """
    from keras import initializers, layers, ops

    normal = initializers.TruncatedNormal(stddev=0.02)
    return layers.Dense(num, use_bias=False, kernel_initializer=normal, name=name)(ops.ones_like(like))


def _norm(shape: Shape, name: str, x: Any) -> Any:
    from keras import layers

    return layers.LayerNormalization(epsilon=shape.epsilon, name=name)(x)


def _attention(shape: Shape, name: str, query: Any, x: Any) -> Any:
    from keras import layers

    return layers.MultiHeadAttention(shape.heads, shape.width // shape.heads, name=f"{name}_attention")(query, x)


def _mlp(shape: Shape, name: str, x: Any) -> Any:
    """Return x + MLP(norm(x))."""
    from keras import activations, layers, ops

    y = _norm(shape, f"{name}_norm2", x)
    y = layers.Dense(shape.mlp or 4 * shape.width, name=f"{name}_mlp1")(y)
    if shape.activation == "gelu":  # as Keras's own, which TensorFlow computes by a function that ONNX has not
        y = 0.5 * y * (1 + ops.erf(y / 2**0.5))
    else:
        y = y * ops.sigmoid(1.702 * y) if shape.activation == "quick_gelu" else activations.gelu(y, approximate=True)
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
    (r"^(vit|dinov2|deit|backbone|model|vision_model)\.", ""),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
    (r"^embeddings\.(patch_embeddings\.projection|patch_embedding)\.", "patch_embed.proj."),
    (r"^encoder\.layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.attention\.attention\.(q|k|v)[a-z]+\.", r".attn.\1."),
    (r"\.self_attn\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.(attention\.output\.dense|self_attn\.out_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_", "attn_pool.qkv."),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^attn_pool\.(q|kv|qkv|proj)\.", r"attn_pool.attn.\1."),
    (r"^attn_pool\.norm\.", "attn_pool.norm2."),
)
"""names of transformers, as regular expressions, and timm's; those of SigLIP's head become those of a block"""


def of_torch(shape: Shape, stored: Mapping[str, NDArray[Any]]) -> Arrays:
    """Return the arrays of `build` from those of a file with timm's or transformers' names.

    What the network has not is left out: a classifier, a tower for text, projections.

    Raises ValueError for a missing array, and for positions of another grid than the network's.
    """
    import numpy as np

    named = renamed(stored, _NAMES)

    def take(name: str) -> NDArray[Any]:
        if name not in named:
            raise ValueError(f"it has no '{name}', in timm's names or transformers'")
        return np.asarray(named[name])

    positions = take("pos_embed")
    positions = positions.reshape(-1, positions.shape[-1])
    of_tokens = len(positions) - shape.grid**2
    if of_tokens not in (0, 1) or of_tokens > shape.leading:
        raise ValueError(f"its {len(positions)} positions are not those of {shape.grid} x {shape.grid} patches")
    arrays: Arrays = {
        "patch_embed/kernel": take("patch_embed.proj.weight").transpose(2, 3, 1, 0),
        "pos_embed/kernel": positions[of_tokens:].reshape(1, -1),
    }
    if not shape.pre_norm:
        arrays["patch_embed/bias"] = take("patch_embed.proj.bias")
    if shape.leading:
        tokens = [take("cls_token").reshape(1, -1), *([take("reg_token")[0]] if shape.registers else [])]
        if of_tokens:  # the class token has a position of its own
            tokens[0] = tokens[0] + positions[:1]
        arrays["tokens/kernel"] = np.concatenate(tokens).reshape(1, -1)
    for name in ("norm", *(["norm_pre"] if shape.pre_norm else [])):
        arrays |= {f"{name}/gamma": take(f"{name}.weight"), f"{name}/beta": take(f"{name}.bias")}
    for k in range(shape.blocks):
        arrays |= {f"block{k}_{name}": array for name, array in _of_block(shape, f"blocks.{k}", named, take)}
    if shape.attention_pool:
        arrays["probe/kernel"] = take("attn_pool.latent").reshape(1, -1)
        arrays |= {f"pool_{name}": array for name, array in _of_block(shape, "attn_pool", named, take)}
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def _of_block(
    shape: Shape, prefix: str, named: Mapping[str, Any], take: Callable[[str], Any]
) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a block by name, or of SigLIP's head, which has one norm and no LayerScale."""
    import numpy as np

    heads, pools = (shape.heads, shape.width // shape.heads), prefix == "attn_pool"
    for k in (1, 2):
        if not (pools and k == 1):
            yield f"norm{k}/gamma", take(f"{prefix}.norm{k}.weight")
            yield f"norm{k}/beta", take(f"{prefix}.norm{k}.bias")
        yield f"mlp{k}/kernel", take(f"{prefix}.mlp.fc{k}.weight").T
        yield f"mlp{k}/bias", take(f"{prefix}.mlp.fc{k}.bias")
        if shape.scaled:
            yield f"scale{k}/kernel", take(f"{prefix}.ls{k}.gamma")[None]
    for kind, name in (("weight", "kernel"), ("bias", "bias")):
        joined = next((j for j in ("qkv", "kv") if f"{prefix}.attn.{j}.{kind}" in named), "")
        of_parts = [take(f"{prefix}.attn.{part}.{kind}") for part in "qkv"[: 3 - len(joined)]]
        if joined:
            of_parts += np.split(take(f"{prefix}.attn.{joined}.{kind}"), len(joined))
        for part, array in zip(("query", "key", "value"), of_parts, strict=True):
            yield f"attention/{part}/{name}", array.T.reshape(*array.T.shape[:-1], *heads)
    yield "attention/attention_output/kernel", take(f"{prefix}.attn.proj.weight").T.reshape(*heads, shape.width)
    yield "attention/attention_output/bias", take(f"{prefix}.attn.proj.bias")


def record(name: str, shape: Shape, preprocessing: Preprocessing, size: int = 224) -> Backbone:
    """Return the record of a transformer for images of this size: each block is a stage."""
    blocks = {f"block{k}": f"block{k}_norm1" for k in range(shape.blocks)}
    return Backbone(
        name=name,
        build=partial(build, shape),
        input_size=size,
        min_size=2 * shape.patch,
        preprocessing=preprocessing,
        stages={"stem": "patch_embed", **blocks, "top": "norm"},
        batch_norm=False,
        residual=r"(block\d+)_(?:attention|mlp2)$",
        patch=shape.patch,
        leading_tokens=shape.leading or 1,
        attention_pool="norm" if shape.attention_pool else None,
        of_torch=partial(of_torch, shape),
    )


_OF_CLIP = Scaling((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_SMALL, _BASE, _LARGE = (384, 12, 6), (768, 12, 12), (1024, 24, 16)


def _vit(name: str, size: tuple[int, int, int], preprocessing: Preprocessing) -> Backbone:
    return record(name, Shape(*size, patch=16, grid=14), preprocessing)


def _dinov2(name: str, size: tuple[int, int, int], registers: int = 0) -> Backbone:
    """Resize positions as the authors' hub does: with registers as Pillow would, without by a slightly larger scale."""
    shape = Shape(*size, patch=14, grid=37, registers=registers, scaled=True, antialias=registers > 0)
    return record(name, replace(shape, offset=0.0 if registers else 0.1), "torch")


def _siglip(name: str, size: tuple[int, int, int], patch: int, grid: int, mlp: int | None = None) -> Backbone:
    """SigLIP 2 of fixed resolution is the same network: both families' files fit."""
    shape = Shape(*size, patch=patch, grid=grid, mlp=mlp, activation="gelu_tanh", attention_pool=True)
    return record(name, shape, "tf", size=patch * grid)


def _clip(name: str, size: tuple[int, int, int], patch: int) -> Backbone:
    """OpenAI's own activation: later checkpoints of other authors have another."""
    shape = Shape(*size, patch=patch, grid=224 // patch, activation="quick_gelu", epsilon=1e-5, pre_norm=True)
    return record(name, shape, _OF_CLIP)


VIT_SMALL, VIT_BASE = _vit("vit_small", _SMALL, "tf"), _vit("vit_base", _BASE, "tf")
VIT_LARGE = _vit("vit_large", _LARGE, "tf")
DEIT_SMALL, DEIT_BASE = _vit("deit_small", _SMALL, "torch"), _vit("deit_base", _BASE, "torch")
DINOV2_SMALL, DINOV2_BASE = _dinov2("dinov2_small", _SMALL), _dinov2("dinov2_base", _BASE)
DINOV2_LARGE = _dinov2("dinov2_large", _LARGE)
DINOV2_REG_SMALL = _dinov2("dinov2_reg_small", _SMALL, 4)
DINOV2_REG_BASE, DINOV2_REG_LARGE = _dinov2("dinov2_reg_base", _BASE, 4), _dinov2("dinov2_reg_large", _LARGE, 4)
SIGLIP_BASE, SIGLIP_LARGE = _siglip("siglip_base", _BASE, 16, 14), _siglip("siglip_large", _LARGE, 16, 16)
SIGLIP_SO400M = _siglip("siglip_so400m", (1152, 27, 16), 14, 16, mlp=4304)
CLIP_BASE16, CLIP_BASE32 = _clip("clip_base16", _BASE, 16), _clip("clip_base32", _BASE, 32)
CLIP_LARGE14 = _clip("clip_large14", _LARGE, 14)
