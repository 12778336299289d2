"""The Keras network of a backbone: where it is cut, its blocks, and how it has fewer channels."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from tl_dist.config import Config
from tl_dist.config.lora import LoraConfig
from tl_dist.models import heads, whole
from tl_dist.models.backbones import Backbone, preprocess, seam, seams
from tl_dist.models.own_head import below_head, built, with_head
from tl_dist.models.pooling import normalize, pool
from tl_dist.refusal import ExitCode, Refusal

MOST = 25
"""Most blocks that are counted one by one: the 24 of ViT-L and its stem, the largest network for which decays by layer
were published (Bao et al., BEiT, arXiv 2106.08254)."""
TOGETHER = 3  # blocks that count as one in a network with more

_layers = keras.layers
_CHANNEL_BY_CHANNEL = (
    _layers.Activation, _layers.AveragePooling2D, _layers.BatchNormalization, _layers.DepthwiseConv2D, _layers.Dropout,
    _layers.MaxPooling2D, _layers.ReLU, _layers.ZeroPadding2D,
)  # fmt: skip


def first_trainable_layer(backbone: Backbone, network: Any, train_from: str, *, key: str = "model.train_from") -> int:
    """Return the position, in topological order, of the first trained layer; all layers before it are frozen.

    Refuses (64) a name that is no stage or layer; `key` of the config is named then.
    """
    names = [layer.name for layer in network.layers]
    if train_from == "head":
        return below_head(backbone, network)
    if train_from == "all":
        return 0
    first = backbone.stages.get(train_from, train_from)
    if first not in names:
        what = f"{key} is '{train_from}', which is no stage or layer of {backbone.name}."
        fix = f"use head, all, or one of {', '.join(backbone.stages)}."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    return names.index(first)


def maps_of(network: Any) -> Any:
    """Return the last Keras tensor of feature maps or tokens; refuse (64) a network that has none."""
    if len(network.output.shape) > 2:
        return network.output
    place = whole.last_maps(network, seams(network), seam)
    if place is None:
        what = f"no feature map of {network.name} passes alone to the layers after it, so nothing can be shown on one."
        raise Refusal(what, fix="use a network with convolutions.", code=ExitCode.USAGE)
    return seam(network, place)


_BIASES, _NORMS = ("bias", "beta"), (_layers.BatchNormalization, _layers.LayerNormalization)


def adapted(kind: str | LoraConfig, layer: Any) -> set[int]:
    """Return the ids of the variables of a layer that `model.adapt` trains where the layer is trained.

    With LoRA there are none: adapters are no variables of a layer.
    """
    chosen = layer.weights
    if kind == "norm":
        chosen = [v for v in chosen if isinstance(layer, _NORMS) and v.name in ("gamma", "beta")]
    elif kind == "bias":
        chosen = [v for v in chosen if v.name in _BIASES]
    elif kind != "all":
        chosen = []
    return {id(variable) for variable in chosen}


def backbone_path(layer: Any, variable: Any) -> str:
    """Return `backbone/<layer>/<variable>`; inside a nested layer the variable is as `depthwise/kernel`."""
    name = str(variable.path).split(f"{layer.name}/", 1)[-1]
    return f"backbone/{layer.name}/{name}"


def stage_ends(backbone: Backbone, network: Any) -> dict[str, int]:
    """Return the position, in topological order, of the first layer after each stage, by the stage's name."""
    names = [layer.name for layer in network.layers]
    starts = [names.index(first) for first in backbone.stages.values()]
    return dict(zip(backbone.stages, [*starts[1:], len(names)], strict=True))


def outputs(backbone: Backbone, network: Any, stages: Sequence[str]) -> list[Any]:
    """Return the Keras tensor that leaves each of `stages`, from input to output; of no stage, the network's output."""
    if not stages:
        return [network.output]
    return [seam(network, end) for name, end in stage_ends(backbone, network).items() if name in stages]


def from_images(backbone: Backbone, network: Any, tensors: Any, build: Any = keras.Model) -> Callable[[Any], Any]:
    """Return a function images -> Keras tensors of the network, which runs in inference mode."""
    model = build(network.inputs, tensors)
    return lambda images: model(preprocess(backbone.preprocessing, images), training=False)


def divide(
    backbone: Backbone, network: Any, pooled: Sequence[Any], pooling: str, first: int, build: Any = keras.Model
) -> tuple[Any, Any, tuple[int, ...] | None]:
    """Return (images -> output of the layers before `first`, this output -> pooled features, its shape for one image).

    The first is None if more than one tensor leaves the frozen part; then the second takes the images. `pooled` are
    the Keras tensors that are pooled; `build(input, outputs)` makes of tensors the model of the trained part.
    """
    whole, patches = from_images(backbone, network, pooled, build), num_patches(backbone, network)
    if first >= len(network.layers):  # none of the backbone is trained: the prefix ends with pooling
        width = pool(pooled, pooling, patches).shape[-1]
        return lambda images: pool(whole(images), pooling, patches), lambda features: features, (width,)
    # A stage that ends where training begins is pooled as it is: a Keras model cannot output its input.
    try:
        between = seam(network, first) if first else None
        above = [output for output in pooled if output is not between]
        trained = build(between, above) if first else None
    except ValueError:  # inside a residual block, or with a stage to pool further below
        between = trained = None
    if between is None or trained is None:
        return None, lambda images: pool(whole(images), pooling, patches), None
    num_passed = len(pooled) - len(above)
    return (
        from_images(backbone, network, between),
        lambda maps: pool([[maps] * num_passed, trained(maps, training=False)], pooling, patches),
        tuple(between.shape[1:]),
    )


def around_pooling(
    backbone: Backbone, network: Any, pooled: Sequence[Any], pooling: str
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return (images -> feature maps before pooling, these maps -> pooled features).

    A head of the network that pools by attention counts as pooling.
    """
    patches, (*below, last) = num_patches(backbone, network), pooled
    if backbone.head_from is not None:
        maps = maps_of(network)
        rest = keras.Model(maps, network.output)
        return from_images(backbone, network, maps), lambda values: rest(*keras.tree.flatten(values), training=False)
    if backbone.attention_pool is None or last is not network.output:
        return from_images(backbone, network, list(pooled)), lambda maps: pool(maps, pooling, patches)
    tokens = network.get_layer(backbone.attention_pool).output
    top = keras.Model(tokens, last)

    def features(maps: Any) -> Any:
        *lower, highest = keras.tree.flatten(maps)
        return pool([*lower, top(highest, training=False)], pooling, patches)

    return from_images(backbone, network, [*below, tokens]), features


def num_patches(backbone: Backbone, network: Any) -> int:
    """Return the number of tokens of patches in the output, if there are others before them; else 0."""
    return maps_of(network).shape[1] - backbone.leading_tokens if backbone.leading_tokens else 0


def depths(backbone: Backbone, network: Any) -> dict[str, int]:
    """Return the depth of each layer of `network` below the head, by name: 1 in the last block, then 2, 3, ...

    `optimizer.layer_decay` counts these blocks. A block begins with each stage, and within a stage wherever
    `backbone.block` matches another name; the convolution that some networks have on top belongs to the last block.
    These are timm's blocks (`group_matcher`). In a network of more than `MOST` blocks, three blocks of a stage count as
    one: so the authors of ConvNeXt count their 36 as 12 and the stem (`optim_factory.py` of
    github.com/facebookresearch/ConvNeXt). Layers before the stem count with it.
    """
    _, *starts = (first for name, first in backbone.stages.items() if name != "top")
    stage = block = 0
    last = None
    blocks: dict[str, tuple[int, int]] = {}
    """layer -> (number of its stage, number of its block in that stage)"""
    for layer in network.layers:
        if layer.name in starts:
            stage, block, last = stage + 1, 0, None
        match = re.match(backbone.block, layer.name) if backbone.block else None
        if match:
            block += last not in (None, match[1])
            last = match[1]
        blocks[layer.name] = stage, block
    if len({*blocks.values()}) > MOST:
        blocks = {layer: (stage, block // TOGETHER) for layer, (stage, block) in blocks.items()}
    head = [layer.name for layer in network.layers[below_head(backbone, network) :]]
    from_the_top = sorted({place for layer, place in blocks.items() if layer not in head}, reverse=True)
    return {layer: 0 if layer in head else 1 + from_the_top.index(place) for layer, place in blocks.items()}


def narrowed(backbone: Backbone, share: float) -> Backbone:
    """Return a `prunable` backbone without this share of the channels of each inner convolution.

    It is an ordinary network, which needs no mask and no special kernel. Channels that are added to others or
    multiplied by them, as at the end of a residual block, all stay.
    """
    return replace(backbone, build=partial(_build_narrow, backbone.build, share)) if share else backbone


def _build_narrow(build: Callable[[tuple[int, int, int]], Any], share: float, input_shape: tuple[int, int, int]) -> Any:
    whole = build(input_shape)
    readers = defaultdict(list)
    for operation in whole.operations:
        for tensor in inputs_of(operation):
            readers[id(tensor)].append(operation)

    def is_inner(operation: Any) -> bool:
        """Return whether the channels are read by one other convolution alone, or leave the network."""
        next_operations = readers[id(operation.output)]
        if len(next_operations) != 1:
            return not next_operations
        (reader,) = next_operations
        return is_convolution(reader) or (isinstance(reader, _CHANNEL_BY_CHANNEL) and is_inner(reader))

    inner_names = {layer.name for layer in whole.layers if is_convolution(layer) and is_inner(layer)}

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if layer.name in inner_names:
            config["filters"] = max(1, round(config["filters"] * (1 - share)))
        return type(layer).from_config(config)

    return keras.models.clone_model(whole, clone_function=clone)


def is_convolution(operation: Any) -> bool:
    """Return whether the operation is a convolution that reads all channels for each channel that it outputs."""
    return isinstance(operation, _layers.Conv2D) and operation.groups == 1


def inputs_of(operation: Any) -> list[Any]:
    """Return the Keras tensors that an operation of a network reads."""
    return [] if isinstance(operation, _layers.InputLayer) else keras.tree.flatten(operation.input)


def assemble(
    backbone: Backbone,
    cfg: Config,
    arrays: Mapping[str, np.ndarray],
    network: Any,
    *,
    dense_head: bool = True,
    temperature: float | None = None,
) -> Any:
    """Return one `keras.Model`: uint8 RGB [batch, size, size, 3] -> float32 probabilities or values [batch, classes].

    It has Keras's own layers alone, so that it can be saved and loaded without tl_dist: the backbone is built again and
    takes the weights of `network`, whose batch-norm layers are not Keras's own. `arrays` has the weights of the head by
    path (`head/logits/kernel`). Without `dense_head` the last layer is written as products and their sum, the same
    function, which a converter to 8 bits leaves in float32. `temperature` divides the logits.
    """
    settings, size = cfg.model, cfg.data.image_size or backbone.input_size
    if settings.head is not None:
        backbone = with_head(backbone, settings.head, network.output.shape[1])
    own, _ = built(narrowed(backbone, settings.prune), (size, size, 3))
    own.set_weights(network.get_weights())
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    tensors = outputs(backbone, own, settings.layers)
    maps = keras.Model(own.inputs, tensors, name=re.sub(r"[^\w.-]", "_", backbone.name))(
        preprocess(backbone.preprocessing, images), training=False
    )
    patches = num_patches(backbone, own)
    pooled = [pool(stage_maps, settings.pooling, patches) for stage_maps in keras.tree.flatten(maps)]
    if settings.normalize:
        pooled = [normalize(part) for part in pooled]
    features = pooled[0] if len(pooled) == 1 else keras.layers.Concatenate(name="features")(pooled)
    dense: dict[str, Any] = {}
    if settings.hidden:
        dense["hidden"] = keras.layers.Dense(settings.hidden, activation="relu", name="hidden")
        features = dense["hidden"](features)
    if backbone.head_from is not None:
        outputs_of_head = heads.paired(ops.cast(features, "float32"), cfg.task)
    elif dense_head:
        kernel, bias = heads.as_dense(cfg.kind_of_head, arrays)
        dense["logits"] = keras.layers.Dense(len(bias), dtype="float32", name="logits")
        outputs_of_head = dense["logits"](features)
    else:
        kernel, bias = heads.as_dense(cfg.kind_of_head, arrays)
        wide = ops.expand_dims(ops.cast(features, "float32"), -1)
        outputs_of_head = ops.sum(wide * kernel, axis=1) + bias
    logits = heads.log_probabilities(cfg.kind_of_head, outputs_of_head)
    if temperature is not None:
        logits = keras.layers.Rescaling(1 / temperature, dtype="float32", name="calibration")(logits)
    answers = heads.answers(cfg.kind_of_head, logits)
    if "logits" in dense:
        dense["logits"].set_weights([kernel, bias])
    if settings.hidden:
        dense["hidden"].set_weights([arrays["head/hidden/kernel"], arrays["head/hidden/bias"]])
    return keras.Model(images, answers, name=cfg.name)
