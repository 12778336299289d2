"""What the network of a user's function is: `python -m tl_dist.models.backbones.described NETWORK` prints it as JSON.

It checks that the network may be trained by any number of workers and exported, and finds its blocks.
"""

import json
import math
import re
import sys
from typing import Any

from tl_dist.config import registry
from tl_dist.models import whole
from tl_dist.models.backbones import seam, seams
from tl_dist.models.backbones.functions import build, refused
from tl_dist.refusal import ExitCode, Refusal

_SIDE = 224  # of images, where the config names none
_BLOCK = re.compile(r"(\D*\d+(?:_\D*\d+)?)[a-z]?_")
"""the start of a layer's name that names its block: block3_conv1, layers_0_blocks_1_norm1, blocks_2_0_dw_conv"""


def describe(network: str) -> dict[str, Any]:
    """Build a network, check that it may be trained here, and return its blocks and the shape of its output."""
    import keras

    name, more = registry.parts_of(network)
    side = more["side"] or _SIDE
    model = build(name, more["arguments"], (side, side, 3))
    _check_layers(name, model)
    _check_outputs(name, model)
    output = model.output.shape
    leading, patch = 0, 1
    cuts = seams(model)
    start = whole.start_of(model, build(name, more["arguments"], (side, side, 3)))
    if len(output) == 3:
        grid = int(output[1] ** 0.5)
        leading, patch = output[1] - grid**2, side // grid if side % grid == 0 else 1
    is_norm = keras.layers.BatchNormalization
    return {
        "side": side,
        "stages": blocks(model),
        "batch_norm": any(isinstance(layer, is_norm) for layer in model.layers),
        "patch": patch,
        "leading_tokens": leading,
        "head_from": whole.head_of(model, cuts, seam) if len(output) == 2 else None,
        "gives": whole.activation_of(model) if len(output) == 2 else None,
        **start,
    }


def _check_layers(name: str, model: Any) -> None:
    import keras

    from tl_dist.models import drop_path

    paths = [variable.path for variable in model.weights]
    if len({*paths}) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise refused(name, f"returned a model with two variables '{twice}'", "give its layers names of their own")
    for layer in model.layers:
        masks = drop_path.mask_shape(layer)
        draws = any(part._seed_generators for part in layer._flatten_layers())
        if masks is None and draws and len(model.output.shape) == 2:  # else as Keras's guide calls a backbone
            what = f"returned a model whose layer '{layer.name}' draws random numbers in training, by no position"
            fix = "remove it: write 'augment' below 'data:', 'dropout' or 'drop_path' below 'model:', or use Dropout"
            raise refused(name, what, fix)
        if masks is not None and math.prod(masks) > drop_path.MOST:
            what = (
                f"returned a model whose layer '{layer.name}' drops {math.prod(masks):,} values of an image one by one"
            )
            raise refused(name, what, "use SpatialDropout2D, which drops whole channels")
        inner = list(layer._flatten_layers(include_self=False))
        if any(isinstance(part, keras.layers.BatchNormalization) for part in inner):
            what = f"returned a model whose layer '{layer.name}' hides batch norm, whose policy could not be kept"
            raise refused(name, what, "put the layers into the model itself, not into a layer")
        try:
            if isinstance(layer, keras.layers.Lambda):
                raise TypeError("a Lambda is code without a name")
            type(layer).from_config(layer.get_config())
        except Exception as error:
            what = f"returned a model whose layer '{layer.name}' cannot be saved and loaded ({error})"
            raise refused(name, what, "give it a get_config that its constructor takes, or use keras.ops") from error


def _check_outputs(name: str, model: Any) -> None:
    """Refuse a model that answers otherwise the second time, or in other company, or that changes its variables."""
    import numpy as np

    images = np.random.default_rng(0).normal(size=(3, *model.input_shape[1:])).astype("float32")
    before = [variable.numpy() for variable in model.variables]
    first, again, alone = (np.asarray(model(batch, training=False)) for batch in (images, images, images[:1]))
    spread = float(np.abs(first).max()) or 1.0
    why = None
    if not np.isfinite(first).all():
        why = "gives values that are not finite"
    elif np.abs(first - again).max() > 1e-4 * spread:
        why = "answers the same images differently the second time, with training=False"
    elif np.abs(first[:1] - alone).max() > 1e-3 * spread:
        why = "answers an image differently beside other images, with training=False"
    elif any(not np.array_equal(old, v.numpy()) for old, v in zip(before, model.variables, strict=True)):
        why = "changes its variables with training=False"
    if why is not None:
        what = f"returned a model that {why}: N workers would not compute what one computes"
        raise refused(name, what, "make its layers functions of an image and their weights alone")


def blocks(model: Any) -> dict[str, str]:
    """Return the blocks of a network, from input to output: names, and the first layer of each.

    It is cut wherever a single tensor passes. Neighbours whose layers' names begin alike are one block; so are a
    convolution, the batch norm and whatever has no weights after it, and the padding before it.
    """
    import keras
    from keras.src.utils.naming import to_snake_case

    layers, cuts = model.layers, seams(model)
    pieces = [layers[start:end] for start, end in zip(cuts, [*cuts[1:], len(layers)], strict=True)]
    stages: dict[str, str] = {}
    padding = last = ""
    for piece in pieces:
        first = next((layer for layer in piece if layer.weights), None)
        if isinstance(piece[0], keras.layers.ZeroPadding2D):
            padding = padding or piece[0].name
            piece = piece[1:]
        if first is None or (stages and isinstance(piece[0], keras.layers.BatchNormalization) and len(piece) == 1):
            continue
        match = _BLOCK.match(first.name)
        is_counted = re.fullmatch(rf"{to_snake_case(type(first).__name__)}(_\d+)?", first.name)  # Keras's own names
        block = match[1] if match and not is_counted else first.name
        if block != last:
            block = first.name if block in stages else block
            stages[block] = padding or piece[0].name
        padding, last = "", block
    return stages or {"all": layers[0].name}


def main() -> int:
    """Print the description of the network that is named; for a refusal, print its line and return its code."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # TensorFlow takes all of their memory
    try:
        sys.stdout.write(f"\n{json.dumps(describe(sys.argv[1]))}\n")
    except Refusal as refusal:
        sys.stderr.write(f"\n{refusal}\n")
        return refusal.code
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
