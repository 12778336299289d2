"""Networks that a function of the user returns: `model.backbone: package.module:NAME` or `my_net.py:NAME`.

The function is called in workers, and once in a child of the launcher, which checks the network, names its blocks and
keeps what it saw in the user's cache (`described.py`).
"""

import hashlib
import importlib.util
import inspect
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

from tl_dist.config import extensions, registry
from tl_dist.files.atomic import write_atomically
from tl_dist.files.packages import locked, user_cache
from tl_dist.models.backbones import Backbone, numbered_from_zero, preprocessing_of
from tl_dist.refusal import ExitCode, Refusal, from_child

_VERSION = 1  # raise it when descriptions change
_BUILD_S = 1800.0


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
    function = _imported(name)
    if not callable(function):
        raise refused(name, f"is no function, but of type {type(function).__name__}", "name a function")
    takes = _parameters(function)
    sizes = {"input_shape": tuple(input_shape), "image_size": input_shape[0]}
    size = next(({key: value} for key, value in sizes.items() if key in takes and key not in arguments), {})
    with numbered_from_zero():
        model = _called(name, lambda: function(**size, **arguments))
        return _flat(name, model, input_shape)


def _parameters(function: Any) -> set[str]:
    """Return the names of what a function takes; of a class also what it passes on to those that it extends."""
    initializers = [vars(base)["__init__"] for base in getattr(function, "__mro__", ()) if "__init__" in vars(base)]
    names: set[str] = set()
    for called in initializers or [function]:
        try:
            parameters = inspect.signature(called).parameters
        except (TypeError, ValueError):  # a builtin
            break
        names |= parameters.keys()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


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
        raise refused(name, f"is not in {file.name}", "correct the name after ':'")
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
        raise refused(name, f"raised {type(error).__name__}{where}: {error}", fix) from error


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
    if isinstance(model.input, Mapping) or len(model.inputs) != 1:
        raise refused(name, "returned a model of several or named inputs", "make it take one tensor of images")
    if len(model.outputs) != 1 or len(model.outputs[0].shape) not in (3, 4):
        shapes = ", ".join(str(tuple(output.shape)) for output in model.outputs)
        what = f"returned a model with outputs {shapes}, not a feature map [n, h, w, c] or tokens [n, tokens, c]"
        raise refused(name, what, "leave out its pooling and classifier, such as by 'arguments: {include_top: false}'")
    shape = tuple(model.inputs[0].shape[1:])
    if any(own not in (None, side) for own, side in zip(shape, input_shape, strict=True)):
        what = f"returned a model for inputs {shape}, not {tuple(input_shape)}"
        raise refused(name, what, f"write 'image_size: {shape[0]}' below 'data:'")
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
        raise refused(name, what, "create them without a dtype of their own, or write 'precision: float32'")
    return wide


def refused(name: str, what: str, fix: str) -> Refusal:
    """Return the refusal (64) of the function `name`."""
    return Refusal(f"backbone '{name}' {what}.", fix=f"{fix}.", code=ExitCode.USAGE)
