"""Networks that a function of the user returns: `model.backbone: package.module:NAME` or `my_net.py:NAME`.

The function is called in workers, and once in a child of the launcher, which checks the network, names its blocks and
keeps what it saw in the user's cache (`described.py`).
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

from tl_dist.config import code, extensions, registry
from tl_dist.files.atomic import write_atomically
from tl_dist.files.packages import locked, user_cache
from tl_dist.models import whole
from tl_dist.models.backbones import Backbone, numbered_from_zero, preprocessing_of
from tl_dist.refusal import ExitCode, Refusal, from_child

_VERSION = 2  # raise it when descriptions change
_BUILD_S = 1800.0
_FIX = "correct it, or 'arguments' below 'model:'"


def record(network: str) -> Backbone:
    """Return the record of a network, as `registry.backbone` takes it, which a function returns.

    Refuses (64) what cannot be imported or called, and a model that cannot be trained here, saying why.
    """
    file = extensions.code_file(registry.parts_of(network)[0])
    return _record(network, file.read_bytes() if file and file.is_file() else b"")


@lru_cache(maxsize=16)
def _record(network: str, content: bytes) -> Backbone:
    """Return the record; once in a process for each content of the function's file, which a notebook may change."""
    name, more = registry.parts_of(network)
    facts = _described(network, registry.code_of_network(network)["code"])
    side = facts["side"]
    built = partial(build, name, more["arguments"])
    return Backbone(
        name=registry.without_folder(name),
        build=built,
        input_size=side,
        min_size=side,
        preprocessing=preprocessing_of(more["preprocessing"]),
        stages=facts["stages"],
        pretrained=partial(built, (side, side, 3)),
        batch_norm=facts["batch_norm"],
        patch=facts["patch"],
        leading_tokens=facts["leading_tokens"],
        function=True,
        head_from=facts["head_from"],
        drawn=tuple(facts["drawn"]),
        gives=facts["gives"],
        start=(facts["weights"], facts["train_from"]),
    )


def _described(network: str, digest: str) -> dict[str, Any]:
    """Return what a child saw of the network, this time or an earlier one."""
    from importlib.metadata import version

    identity = json.dumps([_VERSION, registry.without_folder(network), digest, version("keras")])
    file = user_cache() / "networks" / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"
    with locked(file.with_suffix(".lock")):
        try:
            facts: dict[str, Any] = json.loads(file.read_bytes())
        except (OSError, ValueError):
            facts = _in_child(network)
            write_atomically(file, json.dumps(facts).encode())
    return facts


def _in_child(network: str) -> dict[str, Any]:
    name = registry.parts_of(network)[0]
    command = [sys.executable, "-P", "-m", f"{__package__}.described", network]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_BUILD_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise refused(name, f"took more than {_BUILD_S:.0f} s to build", "make it return sooner") from None
    if done.returncode == ExitCode.DONE:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    refusal = from_child(done.returncode, done.stderr)
    last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    raise refusal or refused(name, f"ended its process with status {done.returncode} ({last})", "call it by itself")


def build(name: str, arguments: Mapping[str, Any], input_shape: tuple[int, int, int]) -> Any:
    """Call the function, and return its layers as a functional Keras model for images of this shape.

    It gets `input_shape` [h, w, 3] or `image_size`, if it takes one of these and `arguments` have none. Refuses (64) a
    function that fails, and whatever `_flat` refuses.
    """
    function = code.load(name, f"backbone '{registry.without_folder(name)}'")
    if not callable(function):
        raise refused(name, f"is no function, but of type {type(function).__name__}", "name a function")
    takes = code.parameters(function)
    sizes = {"input_shape": tuple(input_shape), "image_size": input_shape[0]}
    size = next(({key: value} for key, value in sizes.items() if key in takes and key not in arguments), {})
    with numbered_from_zero():
        model = code.called(
            name, f"backbone '{registry.without_folder(name)}'", lambda: function(**size, **arguments), _FIX
        )
        return _flat(name, model, input_shape)


def _flat(name: str, model: Any, input_shape: tuple[int, int, int]) -> Any:
    """Return the layers of a model as a plain functional model; refuse a model whose training this would change."""
    import keras
    from keras.src.models.functional import Functional

    kinds = (Functional, keras.Sequential)
    if not isinstance(model, kinds):
        kind = "a subclassed model" if isinstance(model, keras.Model) else f"a {type(model).__name__}"
        raise refused(name, f"returned {kind}", "make it return keras.Model(inputs, outputs), of its layers")
    for method in ("train_step", "compute_loss", "call"):
        if getattr(type(model), method) not in [getattr(kind, method) for kind in kinds]:
            what = f"returned a model with a {method} of its own, which would not be run"
            raise refused(name, what, "return keras.Model(model.inputs, model.outputs), if it is not needed")
    named = isinstance(model, Functional) and isinstance(model.input, Mapping)
    if named or len(model.inputs) != 1:
        raise refused(name, "returned a model of several or named inputs", "make it take one tensor of images")
    if len(model.outputs) != 1 or len(model.outputs[0].shape) not in (2, 3, 4):
        shapes = ", ".join(str(tuple(output.shape)) for output in model.outputs)
        what = f"returned a model with outputs {shapes}, not logits [n, k], a feature map or tokens [n, tokens, c]"
        raise refused(name, what, "make it return one of these")
    shape = tuple(model.inputs[0].shape[1:])
    if any(own not in (None, side) for own, side in zip(shape, input_shape, strict=True)):
        what = f"returned a model for inputs {shape}, not {tuple(input_shape)}"
        raise refused(name, what, f"write 'image_size: {shape[0]}' below 'data:'")
    if whole.is_nested(model):
        inputs = keras.Input(shape)
        model = keras.Model(inputs, _taken_apart(name, model, inputs), name=model.name)
    return _wide(name, keras.Model(model.inputs[0], model.outputs[0], name=model.name))


def _taken_apart(name: str, model: Any, inputs: Any) -> Any:
    import keras

    # A saved model has a format for each layer; one that was built under mixed precision has it of this process.
    policy = keras.config.dtype_policy().name
    saved = policy != "float32" and all(layer.dtype_policy.name == "float32" for layer in model._flatten_layers())
    last = whole.last_layer(model)

    def change(layer: Any, config: dict[str, Any]) -> dict[str, Any]:
        return config | {"dtype": policy} if saved and layer is not last and "dtype" in config else config

    try:
        return whole.copied(model, inputs, change)
    except (TypeError, ValueError, NotImplementedError) as error:
        what = f"returned a model whose nested models cannot be taken apart ({error})"
        raise refused(
            name, what, "give layers names of their own, and a get_config that their constructors take"
        ) from error


def _wide(name: str, model: Any) -> Any:
    """Return the model with all variables in float32, of which layers with a dtype of their own may have narrow ones.

    Some give layers the dtype of their inputs, which is bfloat16 in mixed precision.
    """
    import keras

    def is_narrow(layer: Any) -> bool:
        return any(variable.dtype in ("bfloat16", "float16") for variable in getattr(layer, "weights", ()))

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        return type(layer).from_config(config | {"dtype": keras.config.dtype_policy()} if is_narrow(layer) else config)

    if not any(map(is_narrow, model.layers)):
        return model
    wide = keras.models.clone_model(model, clone_function=clone)
    wide.set_weights(model.get_weights())
    for layer in filter(is_narrow, wide.layers):
        what = f"returned a model whose layer '{layer.name}' keeps its variables in 16 bits"
        raise refused(name, what, "create them without a dtype of their own, or write 'precision: float32'")
    return wide


def refused(name: str, what: str, fix: str) -> Refusal:
    """Return the refusal (64) of the function `name`."""
    return code.refused(f"backbone '{registry.without_folder(name)}'", what, fix)
