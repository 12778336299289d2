"""The record of a backbone. `applications.py` has those of Keras's networks; `models/weights` loads their weights."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast


@dataclass(frozen=True)
class Scaling:
    """The mean and standard deviation of each channel of RGB images scaled to 0..1, which normalize them."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Scaling((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Preprocessing = Literal["caffe", "torch", "tf", "inside"] | Scaling
"""How the pretrained weights expect an RGB image with values 0..255:
caffe    BGR minus the ImageNet mean (103.939, 116.779, 123.68)
torch    scaled to 0..1, then by the mean and standard deviation of ImageNet
tf       scaled to -1..1
inside   as it is: the network has its own rescaling layers
Scaling  scaled to 0..1, then by these
"""


Arrays = dict[str, Any]  # Weights on the host: `layer/variable` -> numpy array.


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier.

    `build(input_shape)` returns a functional `keras.Model` from preprocessed float images [batch, h, w, 3] to a
    feature map [batch, h', w', c], or to tokens [batch, n, c], with random weights and no side effect. It is meant to
    be called in inference mode. `stages` maps the name of each stage to its first layer, from input to output. The
    network can be cut there: in the order of `network.layers`, only one tensor passes into the rest (`seam`).
    """

    name: str
    build: Callable[[tuple[int, int, int]], Any]
    input_size: int
    min_size: int
    preprocessing: Preprocessing
    stages: Mapping[str, str]
    block: str | None = None
    """regular expression for the start of a layer's name, whose group names the block of its stage (`blocks.py`);
    None if each stage is one block"""
    residual: str | None = None
    """regular expression for the last layer of each residual branch before it is added; its group names the block"""
    pretrained: Callable[[], Any] | None = None
    """builds the network with Keras's own ImageNet weights, which it downloads; variables are named as in `build`"""
    adapt: Callable[[Arrays], Arrays] = lambda arrays: arrays
    """turns the arrays of a Keras file into those of `build`, if the two networks differ"""
    batch_norm: bool = True  # whether it has batch-norm layers
    patch: int = 1
    """of which the sides of an image must be multiples"""
    leading_tokens: int = 0
    """the number of tokens before those of patches, the class token first, if its outputs are tokens [batch, n, c]"""
    attention_pool: str | None = None
    """the layer from whose tokens, of patches alone, a head of the network pools by attention the first of its output:
    `leading_tokens` is of the output then, and stages further below have no such token"""
    of_torch: Callable[[Mapping[str, Any]], Arrays] | None = None
    """turns the arrays of a file of torch, with timm's or the authors' names, into those of `build`; raises ValueError
    for those of another network"""
    prunable: bool = False
    """whether `model.prune` may narrow it: most of its weights are in convolutions whose channels one other convolution
    reads, with only batch norm, depthwise convolutions, pooling, padding and activations between them"""
    function: bool = False
    """whether a function of the user builds it (`functions.py`), which may also give it weights"""
    head_from: str | None = None
    """the first layer of a head that the network has, so that its outputs are [batch, classes]"""
    gives: str | None = None
    """softmax or sigmoid, if a network with a head ends in it; `build` returns it with that"""
    drawn: tuple[str, ...] = ()
    """layers of a function's network whose weights it draws at random in each call"""
    start: tuple[str, str] = ("imagenet", "head")
    """`weights` and `train_from` that fit what a function returns"""
    imagenet_top1: float | None = None
    """published top-1 accuracy on ImageNet of the pretrained weights; `rank` shows it as a plain baseline, and chooses
    by it among candidates that its folds cannot distinguish from the best"""


def application(
    constructor: str,
    input_shape: tuple[int, int, int] | None = None,
    *,
    weights: Literal["imagenet"] | None = None,
) -> Any:
    """Build a network of keras.applications without its classifier; "imagenet" downloads weights the first time."""
    import keras

    construct = getattr(keras.applications, constructor)
    with numbered_from_zero():
        return construct(include_top=False, weights=weights, input_shape=input_shape, pooling=None)


@contextmanager
def numbered_from_zero() -> Iterator[None]:
    """Number layers without a name from zero inside, and restore the caller's numbering.

    Keras counts them over the whole process: a second InceptionV3 would have other variable names than the first. Keras
    can only clear all of its state, so this replaces the counters behind `keras.backend.get_uid` for a while.
    """
    from keras.src.backend.common import global_state

    counters = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("object_name_uids", defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", counters)


def seam(network: Any, position: int) -> Any:
    """Return the one Keras tensor that passes from `network.layers[:position]` to the rest.

    `keras.Model(network.input, seam)` is the frozen prefix, `keras.Model(seam, network.output)` the suffix.
    Raises ValueError if several pass, as in the middle of a residual block; never at a stage.
    """
    if position >= len(network.layers):
        return network.output
    import keras

    operations = network.operations  # layers, and operations between them that are no layers
    first = next(i for i, op in enumerate(operations) if op is network.layers[position])
    outputs = {id(tensor): tensor for op in operations[:first] for tensor in keras.tree.flatten(op.output)}
    inputs = {id(tensor) for op in operations[first:] for tensor in keras.tree.flatten(op.input)}
    passing = [tensor for key, tensor in outputs.items() if key in inputs]
    if len(passing) != 1:
        raise ValueError(f"{len(passing)} tensors pass into layer {network.layers[position].name!r} and those after it")
    return passing[0]


def seams(network: Any) -> list[int]:
    """Return every position at which a single tensor passes from the layers before it to the rest (`seam`)."""
    import keras

    operations, layers = network.operations, {id(layer): k for k, layer in enumerate(network.layers)}
    last_use = {id(tensor): len(operations) for tensor in network.outputs}
    for position, operation in enumerate(operations):
        for tensor in () if position == 0 else keras.tree.flatten(operation.input):
            last_use.setdefault(id(tensor), position)
            last_use[id(tensor)] = max(last_use[id(tensor)], position)
    positions, passing = [], set[int]()
    for position, operation in enumerate(operations):
        if position and id(operation) in layers and len(passing) == 1:
            positions.append(layers[id(operation)])
        passing |= {id(tensor) for tensor in keras.tree.flatten(operation.output)}
        passing = {key for key in passing if last_use.get(key, 0) > position}
    return positions


def preprocessing_of(written: Any) -> Preprocessing:
    """Return the preprocessing that a config writes as a name, or as mean and standard deviation."""
    if isinstance(written, str):
        return cast(Preprocessing, written)
    return Scaling(tuple(written["mean"]), tuple(written["std"]))


def renamed(stored: Mapping[str, Any], names: Sequence[tuple[str, str]]) -> Arrays:
    """Return arrays under the names that replacing each regular expression of `names` in turn gives."""
    result = {}
    for name, array in stored.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        result[name] = array
    return result


def from_torch(stored: Mapping[str, Any], places: Mapping[str, str], left_out: str) -> Arrays:
    """Return the arrays of torch that `places` names by variable of the network: float32, with axes in Keras's order.

    Raises ValueError for a missing array, and for one more, as a deeper network has, unless the regular expression
    `left_out` matches the end of its name.
    """
    import numpy as np

    if missing := [name for name in places.values() if name not in stored]:
        raise ValueError(f"it has no '{missing[0]}'")
    further = stored.keys() - set(places.values())
    if more := sorted(name for name in further if not re.search(f"(?:{left_out})$", name)):
        raise ValueError(f"it has '{more[0]}', which this network has not")
    arrays = {variable: np.asarray(stored[name], np.float32) for variable, name in places.items()}
    # outputs, inputs, height, width -> height, width, inputs, outputs
    axes = {variable: (*range(2, array.ndim), 1, 0)[-array.ndim :] for variable, array in arrays.items()}
    return {variable: np.ascontiguousarray(array.transpose(axes[variable])) for variable, array in arrays.items()}


def preprocess(kind: Preprocessing, images: Any) -> Any:
    """Turn uint8 RGB [batch, h, w, 3] into float32 as the weights expect it, on the device, in the graph.

    Keras's operations also work inside a `keras.Model` (`network.assemble`): one rule, the same bits.
    """
    import numpy as np
    from keras import ops

    images = ops.cast(images, "float32")
    if kind == "caffe":
        return ops.flip(images, axis=-1) - np.array([103.939, 116.779, 123.68], np.float32)
    if kind == "torch":
        kind = IMAGENET
    if isinstance(kind, Scaling):
        mean, deviation = np.array([kind.mean, kind.std], np.float32)
        return (images / 255.0 - mean) / deviation
    if kind == "tf":
        return images / 127.5 - 1.0
    return images
