"""Networks that a function of the user returns: `model.backbone: package.module:NAME` or `my_net.py:NAME`.

The function is called in workers, and once in a child of the launcher, which checks the network, names its blocks and
keeps what it saw in the user's cache. `python -m tl_dist.models.backbones.functions NETWORK` is that child.
"""

import hashlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

from tl_dist.config import extensions, registry
from tl_dist.files.atomic import write_atomically
from tl_dist.files.packages import locked, user_cache
from tl_dist.models.backbones import Backbone, numbered_from_zero, preprocessing_of, seams
from tl_dist.refusal import ExitCode, Refusal, from_child

_VERSION = 1  # raise it when descriptions change
_SIDE = 224  # of images, where the config names none
_BUILD_S = 1800.0
_BLOCK = re.compile(r"(\D*\d+(?:_\D*\d+)?)[a-z]?_")
"""the start of a layer's name that names its block: block3_conv1, layers_0_blocks_1_norm1, blocks_2_0_dw_conv"""


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
    )


def _described(network: str, code: str) -> dict[str, Any]:
    """Return what a child saw of the network, this time or an earlier one."""
    from importlib.metadata import version

    identity = json.dumps([_VERSION, registry.without_folder(network), code, version("keras")])
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
    command = [sys.executable, "-P", "-m", __name__, network]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_BUILD_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise _refused(name, f"took more than {_BUILD_S:.0f} s to build", "make it return sooner") from None
    if done.returncode == ExitCode.DONE:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    refusal = from_child(done.returncode, done.stderr)
    last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    raise refusal or _refused(name, f"ended its process with status {done.returncode} ({last})", "call it by itself")


def build(name: str, arguments: Mapping[str, Any], input_shape: tuple[int, int, int]) -> Any:
    """Call the function, and return its layers as a functional Keras model for images of this shape.

    It gets `input_shape` [h, w, 3] or `image_size`, if it takes one of these and `arguments` have none. Refuses (64) a
    function that fails, and whatever `_flat` refuses.
    """
    function = _imported(name)
    if not callable(function):
        raise _refused(name, f"is no function, but of type {type(function).__name__}", "name a function")
    try:
        takes = inspect.signature(function.__init__ if inspect.isclass(function) else function).parameters
    except (TypeError, ValueError):  # a builtin
        takes = {}  # type: ignore[assignment]
    sizes = {"input_shape": tuple(input_shape), "image_size": input_shape[0]}
    size = next(({key: value} for key, value in sizes.items() if key in takes and key not in arguments), {})
    with numbered_from_zero():
        model = _called(name, lambda: function(**size, **arguments))
        return _flat(name, model, input_shape)


def _imported(name: str) -> Any:
    """Return the function, from a package or from a file, which is imported once for each content."""
    file, attribute = extensions.code_file(name), name.rpartition(":")[2]
    if file is None:
        return extensions.imported(name, f"backbone '{name}'")
    module_name = f"tl_dist_code_{extensions.code_digest(extensions.home(name))}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None and spec.loader is not None
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
        try:
            _called(name, partial(spec.loader.exec_module, module))
        except Refusal:
            del sys.modules[module_name]
            raise
    if not hasattr(sys.modules[module_name], attribute):
        raise _refused(name, f"is not in {file.name}", "correct the name after ':'")
    return getattr(sys.modules[module_name], attribute)


def _called(name: str, call: Callable[[], Any]) -> Any:
    """Return the result of the user's code; refuse what it raises, with the line of its file."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        file = extensions.code_file(name)
        steps = traceback.extract_tb(error.__traceback__) if file else []
        lines = [step.lineno for step in steps if step.filename == str(file)]
        if isinstance(error, SyntaxError) and error.lineno:
            lines.append(error.lineno)
        where = f" in line {lines[-1]} of {file.name}" if file and lines else ""
        fix = "correct it, or 'arguments' below 'model:'"
        if isinstance(error, ModuleNotFoundError):
            fix = "install what it needs; of a file's own folder, only the file itself is copied into a run"
        raise _refused(name, f"raised {type(error).__name__}{where}: {error}", fix) from error


def _flat(name: str, model: Any, input_shape: tuple[int, int, int]) -> Any:
    """Return the layers of a model as a plain functional model; refuse a model whose training this would change."""
    import keras
    from keras.src.models.functional import Functional

    kinds = (Functional, keras.Sequential)
    if not isinstance(model, kinds):
        kind = "a subclassed model" if isinstance(model, keras.Model) else f"a {type(model).__name__}"
        raise _refused(name, f"returned {kind}", "make it return keras.Model(inputs, outputs), of its layers")
    for method in ("train_step", "compute_loss", "call"):
        if getattr(type(model), method) not in [getattr(kind, method) for kind in kinds]:
            what = f"returned a model with a {method} of its own, which would not be run"
            raise _refused(name, what, "return keras.Model(model.inputs, model.outputs), if it is not needed")
    if isinstance(model.input, Mapping) or len(model.inputs) != 1:
        raise _refused(name, "returned a model of several or named inputs", "make it take one tensor of images")
    if len(model.outputs) != 1 or len(model.outputs[0].shape) not in (3, 4):
        shapes = ", ".join(str(tuple(output.shape)) for output in model.outputs)
        what = f"returned a model with outputs {shapes}, not a feature map [n, h, w, c] or tokens [n, tokens, c]"
        raise _refused(name, what, "leave out its pooling and classifier, such as by 'arguments: {include_top: false}'")
    shape = tuple(model.inputs[0].shape[1:])
    if any(own not in (None, side) for own, side in zip(shape, input_shape, strict=True)):
        what = f"returned a model for inputs {shape}, not {tuple(input_shape)}"
        raise _refused(name, what, f"write 'image_size: {shape[0]}' below 'data:'")
    return _wide(name, keras.Model(model.inputs[0], model.outputs[0], name=model.name))


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
        raise _refused(name, what, "create them without a dtype of their own, or write 'precision: float32'")
    return wide


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
    }


def _check_layers(name: str, model: Any) -> None:
    import keras

    paths = [variable.path for variable in model.weights]
    if len({*paths}) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise _refused(name, f"returned a model with two variables '{twice}'", "give its layers names of their own")
    for layer in model.layers:
        inner = list(layer._flatten_layers(include_self=False))
        if any(isinstance(part, keras.layers.BatchNormalization) for part in inner):
            what = f"returned a model whose layer '{layer.name}' hides batch norm, whose policy could not be kept"
            raise _refused(name, what, "put the layers into the model itself, not into a layer or a nested model")
        try:
            if isinstance(layer, keras.layers.Lambda):
                raise TypeError("a Lambda is code without a name")
            type(layer).from_config(layer.get_config())
        except Exception as error:
            what = f"returned a model whose layer '{layer.name}' cannot be saved and loaded ({error})"
            raise _refused(name, what, "give it a get_config that its constructor takes, or use keras.ops") from error


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
        raise _refused(name, what, "make its layers functions of an image and their weights alone")


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


def _refused(name: str, what: str, fix: str) -> Refusal:
    return Refusal(f"backbone '{name}' {what}.", fix=f"{fix}.", code=ExitCode.USAGE)


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
