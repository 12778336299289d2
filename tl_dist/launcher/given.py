"""Objects that `tl_dist.train` is given, as a config that names files of them: functions, models, losses, metrics.

A function in a module travels as its file. One of a notebook or a script travels by cloudpickle with what it uses, in
a file that has its source beside it: the source identifies it, since two pickles of one function differ.
"""

import base64
import functools
import hashlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tl_dist.config import GIVEN, Config, code, registry
from tl_dist.config import file as config_file
from tl_dist.files import consent
from tl_dist.files.atomic import temporary_name, write_atomically
from tl_dist.files.packages import user_cache
from tl_dist.refusal import ExitCode, Refusal

_ROOT = Path(__file__).parents[1]


def place() -> Path:
    """Return the directory of the user's cache for what was given."""
    return user_cache() / "given"


def with_objects(
    cfg: Config,
    *,
    model: Any = None,
    head: Any = None,
    loss: Any = None,
    metrics: Mapping[str, Any] | None = None,
    augment: Any = None,
    data: tuple[Path, int | None] | None = None,
) -> Config:
    """Return the config with the names of files of these objects, checked like a config file; `data` as it was packed.

    What the config leaves out about a model fits the model: images as they are, its own weights, all of it trained but
    what it has frozen. Refuses (64) what cannot travel to workers, and what a config refuses.
    """
    values, written = cfg.model_dump(mode="json"), cfg.model.model_fields_set
    names = cfg.data.name, cfg.model.backbone
    if GIVEN not in names and all(item is None for item in (model, head, loss, metrics, augment, data)):
        consent.grant(code.files(values))
        return cfg
    if data is not None:
        values["data"] |= {"name": "packed", "path": str(data[0])}
    if model is not None:
        values["model"]["backbone"] = _name_of(model, "model")
        if "preprocessing" not in written:
            values["model"]["preprocessing"] = "inside"
        if cfg.data.image_size is None:
            shape = getattr(model, "input_shape", None)
            values["data"]["image_size"] = shape[1] if isinstance(shape, tuple) and shape[1] else data and data[1]
    if head is not None:
        values["model"]["head"] = _name_of(head, "head")
    if loss is not None:
        values["loss"]["name"] = _name_of(loss, "loss")
    values["evaluation"]["metrics"] |= {
        key: _name_of(metric, f"metric {key}") for key, metric in (metrics or {}).items()
    }
    if augment is not None:
        values["data"]["augment"] = [*values["data"]["augment"], _name_of(augment, "augment")]
    for key, name in (("data", values["data"]["name"]), ("model", values["model"]["backbone"])):
        if name == GIVEN:
            what = f"the config of '{cfg.name}' names no {key}."
            raise Refusal(
                what, fix=f"give tl_dist.train {key}=..., or the config a section '{key}'.", code=ExitCode.USAGE
            )
    consent.grant(code.files(values))
    if model is not None and not {"weights", "train_from"} <= written:
        complete = Config.model_validate(config_file.tuples(values))
        weights, train_from = registry.backbone(complete.network).start
        values["model"] |= {"weights": weights} if "weights" not in written else {}
        values["model"] |= {"train_from": train_from} if "train_from" not in written and not cfg.stages else {}
    return config_file.changed(Config.model_validate(config_file.tuples(values)), [])


def _name_of(given: Any, what: str) -> str:
    """Return the name by which a config refers to an object."""
    if isinstance(given, str):
        return given
    if hasattr(given, "save") and hasattr(given, "layers"):
        return _kept_model(given)
    module = sys.modules.get(getattr(given, "__module__", None) or "")
    name = getattr(given, "__qualname__", "")
    if module and name and module.__name__ != "__main__" and getattr(module, name, None) is given:
        return (
            f"{_file_of(module)}:{name}"
            if _is_local(module) and "." not in module.__name__
            else f"{module.__name__}:{name}"
        )
    if not callable(given) and not hasattr(given, "update_state"):
        text = f"{what} is a {type(given).__name__}."
        raise Refusal(
            text, fix=f"give a function, or its name FILE.py:NAME, as {what.split()[0]}.", code=ExitCode.USAGE
        )
    return _kept_object(given, what)


def _file_of(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or "")


def _is_local(module: ModuleType) -> bool:
    """Return whether a module is the user's own: of no installed package, and not of Python."""
    file = _file_of(module)
    if not file or Path(file).is_relative_to(_ROOT) or "site-packages" in file or "dist-packages" in file:
        return module.__name__ == "__main__"
    return module.__name__.partition(".")[0] not in sys.stdlib_module_names


def _kept_model(model: Any) -> str:
    keras, functional = sys.modules["keras"], sys.modules["keras.src.models.functional"]
    if not isinstance(model, functional.Functional | keras.Sequential) or not model.built:
        what = "model is a subclassed model, or one that was never built."
        raise Refusal(
            what, fix="give keras.Model(inputs, outputs), or a function that returns it.", code=ExitCode.USAGE
        )
    if getattr(model, "compiled", False):
        what = "model was compiled, but tl_dist.train takes optimizer and loss from the config."
        fix = (
            "leave out model.compile: write 'optimizer' in the config, and give tl_dist.train loss=... and metrics=..."
        )
        raise Refusal(what, fix=f"{fix}.", code=ExitCode.USAGE)
    total = hashlib.sha256(json.dumps(model.get_config(), sort_keys=True, default=str).encode())
    for array in model.get_weights():
        total.update(np.ascontiguousarray(array).tobytes())
    file = place() / total.hexdigest()[:12] / "model.keras"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(file).with_suffix(".keras")
        model.save(temporary)
        temporary.rename(file)
    return f"{file}:model"


def _kept_object(given: Any, what: str) -> str:
    facts: dict[str, Any] = {
        "python": list(sys.version_info[:2]),
        "source": "\n\n".join(_sources(given, _title(given), {})),
    }
    if type(given).__module__.startswith("keras."):
        facts["keras"] = sys.modules["keras"].saving.serialize_keras_object(given)
    else:
        facts["object"] = base64.b64encode(_pickled(given, what)).decode()
    name = _word(_title(given))
    digest = hashlib.sha256(f"{facts['python']} {facts['source']}".encode()).hexdigest()[:12]
    file = place() / digest / f"{_word(what)}.function"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps({"object": "", **facts}, indent=1).encode())
    return f"{file}:{name}"


def _pickled(given: Any, what: str) -> bytes:
    """Return an object with all that it uses of the user's own modules, which workers could not import."""
    import cloudpickle

    local = [
        m for m in [*sys.modules.values()] if isinstance(m, ModuleType) and _is_local(m) and m.__name__ != "__main__"
    ]
    try:
        for module in local:
            cloudpickle.register_pickle_by_value(module)
        return bytes(cloudpickle.dumps(given))
    except Exception as error:
        text = f"{what} cannot travel to workers: {type(error).__name__}: {' '.join(str(error).split())[:200]}."
        fix = "build what it uses inside it, or put it into a file, FILE.py:NAME."
        raise Refusal(text, fix=fix, code=ExitCode.USAGE) from error
    finally:
        for module in local:
            if module.__name__ in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.unregister_pickle_by_value(module)


def _sources(value: Any, name: str, seen: dict[int, tuple[str, Any]]) -> list[str]:
    """Return what identifies an object and all that it uses: the source of functions and classes, or the value.

    What was described under another name is referred to by it: `seen` has that name, and the object, which so keeps
    its id.
    """
    if _is_plain(value) or (isinstance(value, list | tuple) and all(map(_is_plain, value))):
        return [f"{name} = {value!r}"]
    if id(value) in seen:
        return [f"{name} = {seen[id(value)][0]}"]
    seen[id(value)] = name, value
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    own = module is not None and _is_local(module)
    parts: Mapping[str, Any] = {}
    if isinstance(value, functools.partial):
        arguments = {f"argument{k}": item for k, item in enumerate(value.args)}
        parts = {"function": value.func, **arguments, **value.keywords}
        return [f"{name} = partial", *_sources_of(parts, seen)]
    if inspect.ismethod(value):
        return _sources_of({"self": value.__self__, "function": value.__func__}, seen)
    if isinstance(value, type) and own:
        parts = {base.__qualname__: base for base in value.__bases__}
        parts |= {key: getattr(item, "__func__", item) for key, item in vars(value).items()}
        parts = {key: item for key, item in parts.items() if isinstance(item, type) or inspect.isfunction(item)}
        return [_source(value), *_sources_of(parts, seen)]
    if inspect.isfunction(value) and own:
        used = inspect.getclosurevars(value)
        defaults = {f"default{k}": item for k, item in enumerate(value.__defaults__ or ())}
        parts = {**used.globals, **used.nonlocals, **defaults, **(value.__kwdefaults__ or {})}
        return [_source(value), *_sources_of(parts, seen)]
    if isinstance(value, ModuleType) or inspect.isfunction(value) or isinstance(value, type):
        return [
            f"{name} = {getattr(value, '__module__', '')} {getattr(value, '__qualname__', value.__class__.__name__)}"
        ]
    if hasattr(value, "get_config"):
        settings = {key: item for key, item in value.get_config().items() if key != "name"}  # Keras numbers names
        text = json.dumps(settings, sort_keys=True, default=str)
        return [f"{name} = {type(value).__qualname__} {text}", *_sources(type(value), "class", seen)]
    if isinstance(value, np.ndarray):
        return [
            f"{name} = {value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
        ]
    if own and hasattr(value, "__dict__"):  # of a class of the user
        return [f"{name} = {type(value).__qualname__}", *_sources_of({"class": type(value), **vars(value)}, seen)]
    if isinstance(value, Mapping):
        return [f"{name} = mapping", *_sources_of({repr(key): item for key, item in value.items()}, seen)]
    if isinstance(value, list | tuple):
        return [f"{name} = sequence", *_sources_of({f"{k:09}": item for k, item in enumerate(value)}, seen)]
    if isinstance(value, set | frozenset):
        return [f"{name} = set {sorted(map(repr, value))}"]
    text = repr(value)
    return [f"{name} = {type(value).__qualname__ if ' at 0x' in text else text}"]


def _is_plain(value: Any) -> bool:
    """Return whether the text of a value says all of it; it is chance whether two equal ones are one object."""
    return isinstance(value, str | bytes | int | float | None)


def _sources_of(parts: Mapping[str, Any], seen: dict[int, tuple[str, Any]]) -> list[str]:
    return [text for key in sorted(parts) for text in _sources(parts[key], key, seen)]


def _source(value: Any) -> str:
    try:
        return textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError):  # typed into a prompt
        compiled = getattr(value, "__code__", None)
        if compiled is None:
            return str(value.__qualname__)
        constants = [item for item in compiled.co_consts if not inspect.iscode(item)]
        return f"{value.__qualname__} {compiled.co_code.hex()} {constants} {compiled.co_names}"


def _title(given: Any) -> str:
    return str(getattr(given, "__name__", None) or getattr(given, "name", None) or type(given).__name__)


def _word(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_") or "function"


def refuse_import() -> None:
    """Refuse (64) to train while a file with the user's functions is being imported."""
    if code.importing():
        what = f"{code.importing()} calls tl_dist.train when it is imported, as workers do."
        raise Refusal(what, fix="put the call below: if __name__ == '__main__':", code=ExitCode.USAGE)
