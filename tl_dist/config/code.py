"""Functions of the user that a config names, as package.module:NAME or FILE:NAME; a run keeps a copy of each file.

FILE is Python (.py), or what `tl_dist.train` writes of an object that it gets: .function and .keras.
"""

import base64
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tl_dist.config import extensions
from tl_dist.files import consent, limits
from tl_dist.files.foreign import read_file
from tl_dist.refusal import ExitCode, Refusal, shortened

_PLACES = (
    ("model", "backbone"), ("model", "head"), ("loss", "name"), ("evaluation", "metrics"),
    ("data", "augment"), ("source", "data", "augment"),
)  # fmt: skip
"""keys whose value may be, or may hold, names of functions"""
_ROOT = Path(__file__).parents[1]
_IMPORTING: list[str] = []


def is_function(name: str) -> bool:
    """Return whether a value has the form of a function's name; one of a backbone may also be that of a record."""
    return extensions.code_file(name) is not None or extensions.is_reference(name)


def with_code(values: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return the values of a config in which each name of a function is replaced by what `change` gives for it."""
    result = dict(values)
    for path in _PLACES:
        result = _changed_at(result, path, change)
    return result


def _changed_at(values: Mapping[str, Any], path: tuple[str, ...], change: Callable[[str], str]) -> dict[str, Any]:
    key, *rest = path
    item = values.get(key)
    if not rest and key in values:
        return {**values, key: _changed(item, change)}
    return {**values, key: _changed_at(item, tuple(rest), change)} if isinstance(item, Mapping) else dict(values)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value) if is_function(value) else value
    if isinstance(value, Mapping):
        return {key: _changed(item, change) for key, item in value.items()}
    return [_changed(item, change) for item in value] if isinstance(value, list | tuple) else value


def with_whole_paths(data: Mapping[str, Any], where: Mapping[str, str]) -> dict[str, Any]:
    """Return the values with absolute paths of files of functions, from the config's own folder, not the working one.

    So a run's config finds the copies in the run, wherever all are moved. An override begins in the working directory.
    """
    overridden = [text.partition("=")[2] for text in where.values() if text.startswith("override '")]

    def absolute(name: str) -> str:
        file = extensions.code_file(name)
        if file is None:
            return name
        folder = Path() if any(name in text for text in overridden) else Path(where[""]).parent
        return f"{(folder / file.expanduser()).absolute()}:{name.rpartition(':')[2]}"

    return with_code(data, absolute)


def short(name: str) -> str:
    """Return the name of a function without the folder of its file, for people and for what a run is bound to."""
    file = extensions.code_file(name)
    return f"{file.name}:{name.rpartition(':')[2]}" if file else name


def among(names: Iterable[str]) -> str:
    """Return ", with 'my_loss.py:focal'" for the functions of the user among names, "" if there are none."""
    functions = [f"'{short(name)}'" for name in names if is_function(name)]
    return f", with {' and '.join(functions)}" if functions else ""


def files(values: Mapping[str, Any]) -> list[Path]:
    """Return the files of code that the values of a config name, each once."""
    names: list[str] = []
    with_code(values, lambda name: names.append(name) or name)  # type: ignore[func-returns-value]
    return [*dict.fromkeys(filter(None, map(extensions.code_file, names)))]


def beside_backbone(cfg: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each function that a config names, with the path of its key, but for that of the backbone."""
    for key, name in (("head", cfg.model.head), ("loss", cfg.loss.name)):
        if name is not None and is_function(name):
            yield (("model", "head") if key == "head" else ("loss", "name")), name
    for key, name in cfg.evaluation.metrics.items():
        yield ("evaluation", "metrics", key), name
    for number, name in enumerate(cfg.data.augment):
        if is_function(name):
            yield ("data", "augment", str(number)), name


def load(name: str, who: str) -> Any:
    """Return the function; `who` names it in a refusal, such as "loss 'my_loss.py:focal'". Imported once per content.

    Refuses (64) what cannot be imported.
    """
    file, attribute = extensions.code_file(name), name.rpartition(":")[2]
    if file is None:
        return extensions.imported(name, who)
    module_name = f"tl_dist_code_{extensions.code_digest(extensions.home(name))}"
    if not consent.is_granted(file):
        fix = f"read it, then 'tl-dist trust {file.parent.parent if file.parent.name == 'code' else file}'"
        raise refused(who, f"is in {file}, which came with a run and has not been run by you", fix)
    if file.suffix == ".keras":
        return partial(_model, file, who)
    if file.suffix == ".function":
        return called(name, who, partial(_object, file))
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None and spec.loader is not None
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
        _IMPORTING.append(file.name)
        try:
            called(name, who, partial(spec.loader.exec_module, module))
        except Refusal:
            del sys.modules[module_name]
            raise
        finally:
            _IMPORTING.pop()
    if not hasattr(sys.modules[module_name], attribute):
        raise refused(who, f"is not in {file.name}", "correct the name after ':'")
    return getattr(sys.modules[module_name], attribute)


def importing() -> str | None:
    """Return the file of functions that is being imported, if one is."""
    return _IMPORTING[-1] if _IMPORTING else None


def _object(file: Path) -> Any:
    """Return the object in a .function file: one of Keras from its config, any other by cloudpickle."""
    facts = json.loads(read_file(file, max_bytes=limits.RUN_JSON))
    if "keras" in facts:
        return import_module("keras").saving.deserialize_keras_object(facts["keras"])
    here = list(sys.version_info[:2])
    if facts["python"] != here:
        there = ".".join(map(str, facts["python"]))
        raise TypeError(f"it was kept by Python {there}, whose functions Python {here[0]}.{here[1]} cannot read")
    return import_module("cloudpickle").loads(base64.b64decode(facts["object"]))


def _model(file: Path, who: str) -> Any:
    try:
        return import_module("keras").models.load_model(file, compile=False)
    except (Exception, SystemExit) as error:
        what = f"cannot be loaded from {file.name}: {shortened(str(error).strip().splitlines()[0], 200)}"
        fix = "give the function that builds it instead, or register its layers with keras.saving"
        raise refused(who, what, fix) from error


def parameters(function: Any) -> set[str]:
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


def called(name: str, who: str, call: Callable[[], Any], fix: str = "correct it") -> Any:
    """Return the result of the user's code; refuse (64) what it raises, with the line of its file."""
    try:
        return call()
    except Refusal:
        raise
    except (Exception, SystemExit) as error:
        file = extensions.code_file(name)
        steps = traceback.extract_tb(error.__traceback__) if file else []
        own = [step for step in steps if "site-packages" not in step.filename and "<frozen" not in step.filename]
        places = [(step.lineno, step.filename) for step in own if not Path(step.filename).is_relative_to(_ROOT)]
        if isinstance(error, SyntaxError) and error.lineno and file:
            places.append((error.lineno, str(file)))
        where = f" in line {places[-1][0]} of {Path(places[-1][1]).name}" if places else ""
        if isinstance(error, ModuleNotFoundError):
            fix = "install what it needs; of a file's own folder, only the file itself is copied into a run"
        text = shortened(" ".join(str(error).split()), 300)
        raise refused(who, f"raised {type(error).__name__}{where}: {text}", fix) from error


def refused(who: str, what: str, fix: str) -> Refusal:
    """Return the refusal (64) of the function that `who` names."""
    return Refusal(f"{who} {what}.", fix=f"{fix}.", code=ExitCode.USAGE)
