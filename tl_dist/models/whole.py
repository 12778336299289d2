"""Models of the user that have a head of their own: their layers as one flat graph, where the head begins, its outputs.

Keras is imported on use: the launcher reads the records of networks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from tl_dist.config import code
from tl_dist.models.backbones import numbered_from_zero

HEAD = "head_input"
"""the layer between a backbone and the head that `model.head` names"""


def copied(model: Any, inputs: Any, change: Callable[[Any, dict[str, Any]], Any] = lambda layer, config: config) -> Any:
    """Return the output of new layers like those of a functional model, nested models in it taken apart, on `inputs`.

    The layers have the same weights. `change` gets each layer and its config, and returns the config of the new one.
    In a nested model that is called with `training=False`, as in Keras's guide, `Dropout` drops nothing.
    """
    import keras
    from keras.src.models.functional import Functional

    new: dict[int, Any] = {}
    originals: dict[int, Any] = {}

    def operation(original: Any, drops: bool) -> Any:
        if isinstance(original, Functional | keras.Sequential):
            return lambda tensor, training=None, **options: run(original, tensor, drops and training is not False)
        if id(original) not in new:
            config = change(original, original.get_config())
            if isinstance(original, keras.layers.Dropout) and not drops:
                config["rate"] = 0.0
            originals[id(original)], new[id(original)] = original, type(original).from_config(config)
        return new[id(original)]

    def run(nested: Any, tensor: Any, drops: bool) -> Any:
        graph = getattr(nested, "_functional", nested)
        return graph._run_through_graph(tensor, operation_fn=partial(operation, drops=drops))

    output = run(model, inputs, True)
    for key, original in originals.items():
        if getattr(original, "weights", ()):
            new[key].set_weights(original.get_weights())
    return output


def head(name: str, input_shape: tuple[int, ...], num_classes: int) -> Any:
    """Call the function of `model.head`, and return the model from the backbone's output to outputs [n, k].

    It gets `input_shape`, without the rows, and `num_classes`, if it takes them. Refuses (64) a function that fails,
    and whatever cannot be saved or has hidden batch norm.
    """
    who = f"head '{code.short(name)}'"
    function = code.load(name, who)
    offered = {"input_shape": input_shape, "num_classes": num_classes}
    takes = code.parameters(function)
    with numbered_from_zero():
        model = code.called(name, who, lambda: function(**{key: offered[key] for key in offered if key in takes}))
    if hasattr(model, "build") and not getattr(model, "built", True):
        code.called(name, who, lambda: model.build((None, *input_shape)))
    if not hasattr(model, "outputs") or len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
        raise code.refused(who, "returned no Keras model with outputs [n, k]", "return keras.Model or keras.Sequential")
    return model


def is_nested(model: Any) -> bool:
    """Return whether a functional model contains others."""
    import keras
    from keras.src.models.functional import Functional

    return any(isinstance(layer, Functional | keras.Sequential) for layer in model.layers)


def last_layer(model: Any) -> Any:
    """Return the layer of a functional model, or of one in it, that gives its output."""
    layer = model.outputs[0]._keras_history.operation
    return last_layer(layer) if hasattr(layer, "outputs") and hasattr(layer, "layers") else layer


def activation_of(model: Any) -> str | None:
    """Return softmax or sigmoid if a model ends in one, else None."""
    import keras

    last = last_layer(model)
    if isinstance(last, keras.layers.Softmax):
        return "softmax"
    name = getattr(getattr(last, "activation", None), "__name__", None)
    return name if name in ("softmax", "sigmoid") else None


def with_logits(model: Any) -> Any:
    """Return a copy of a model with new layers, without the softmax or sigmoid in which it may end."""
    import keras

    last, ends = last_layer(model), activation_of(model)
    inputs = keras.Input(model.inputs[0].shape[1:])
    if ends is not None and isinstance(last, keras.layers.Softmax):
        return keras.Model(inputs, copied(keras.Model(model.inputs, last.input, name=model.name), inputs))

    def change(layer: Any, config: dict[str, Any]) -> dict[str, Any]:
        return config | {"activation": "linear"} if layer is last and ends is not None else config

    return keras.Model(inputs, copied(model, inputs, change), name=model.name)


def last_maps(network: Any, seams: list[int], seam: Callable[[Any, int], Any]) -> int | None:
    """Return the position of the layer that takes the last feature map or tokens; None if none passes alone."""
    return next((k for k in reversed(seams) if len(seam(network, k).shape) > 2), None)


def head_of(network: Any, seams: list[int], seam: Callable[[Any, int], Any]) -> str:
    """Return the first layer of the head: the first after the last feature map that has weights, or drops features."""
    import keras

    start = last_maps(network, seams, seam) or 0
    for cut in [k for k in seams if k > start] or [start]:
        if any(layer.weights or isinstance(layer, keras.layers.Dropout) for layer in network.layers[start:cut]):
            break
        start = cut
    return str(network.layers[start].name)


def start_of(first: Any, second: Any) -> dict[str, Any]:
    """Return what is known of a network's first weights from two calls of its function: drawn layers, and frozen ones.

    A layer is drawn if its values differ, or if it is batch norm that has seen nothing.
    """
    import keras
    import numpy as np

    def is_drawn(layer: Any, other: Any) -> bool:
        if isinstance(layer, keras.layers.BatchNormalization):
            mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
            if not mean.any() and (variance == 1).all():
                return True
        return any(not np.array_equal(*pair) for pair in zip(layer.get_weights(), other.get_weights(), strict=True))

    pairs = [pair for pair in zip(first.layers, second.layers, strict=True) if pair[0].weights]
    drawn = [layer.name for layer, other in pairs if is_drawn(layer, other)]
    trained = [k for k, (layer, _) in enumerate(pairs) if layer.trainable]
    return {
        "drawn": drawn,
        "weights": "random" if len(drawn) == len(pairs) else "function",
        "train_from": "all" if trained[:1] in ([], [0]) else pairs[trained[0]][0].name,
    }
