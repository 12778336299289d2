"""Data sets, backbones and strategies of other packages: by the name of an entry point, or as package.module:NAME.

Either leads to a record like those in `registry`, whose module must not import a framework. It is searched for where
workers search, which excludes the working directory. Only such a record is ever called, and a function that returns a
network, which is located here and called by `models/backbones/functions.py`.
"""

import functools
import hashlib
import importlib.util
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import all_suffixes
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from pydantic import TypeAdapter

from tl_dist.refusal import ExitCode, Refusal

FRAMEWORKS = ("tensorflow", "keras", "horovod")
# Not `__main__`: importing it would start a program.
_REFERENCE = re.compile(r"(?!.*\b__main__\b)[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")
MORE = "?"
"""between the name of a backbone and, as JSON, what else decides how it is built and fed (`ModelConfig.network`)"""
_CODE_FILE = re.compile(r"(.*\.(?:py|function|keras)):([^\W\d]\w*)", re.DOTALL)


class Offer(NamedTuple):
    """Where another package has its record."""

    reference: str
    """package.module:NAME"""
    distribution: str | None = None
    """name and version of the package that has the entry point"""


def offers(group: str) -> dict[str, list[Offer]]:
    """Return what installed packages offer in a group of entry points, by name. Imports nothing."""
    records: dict[str, list[Offer]] = {}
    for point in _entry_points(tuple((folder, _changed(folder)) for folder in sys.path)).select(group=group):
        distribution = f"{point.dist.name} {point.dist.version}" if point.dist else None
        records.setdefault(point.name, []).append(Offer(point.value, distribution))
    return records


@functools.lru_cache(maxsize=1)
def _entry_points(folders: tuple[tuple[str, int], ...]) -> EntryPoints:
    """Return the entry points of all groups; read again (5 ms for 230 packages) if `sys.path` or its folders change."""
    points: Any = entry_points()  # another class in Python 3.11, with the same `select`
    return points


def _changed(folder: str) -> int:
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def is_reference(name: str) -> bool:
    """Return whether a name has the form package.module:NAME."""
    return _REFERENCE.fullmatch(name) is not None


def code_file(name: str) -> Path | None:
    """Return the path in a name of the form path/to/file.py:NAME; None for another (`code.py` says which files)."""
    match = _CODE_FILE.fullmatch(name)
    return Path(match[1]) if match else None


def home(reference: str) -> Path:
    """Return the file, or the folder of the top package, with the code of a reference. Imports nothing.

    Refuses (64) a file or a package that is not there; the working directory is not searched.
    """
    file = code_file(reference)
    if file is not None:
        if not file.is_file():
            raise _refused(f"there is no file {file}", "correct the path before ':', or bring the file.")
        return file
    top = reference.partition(":")[0].partition(".")[0]
    with _outside_start_directory():
        spec = importlib.util.find_spec(top)
    if spec is None or top in sys.stdlib_module_names:
        what = f"there is no package {top} in this Python environment"
        raise _refused(what, "install the package that has it; the working directory is not searched.")
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else [])]
    return Path(places[0])


def imported(reference: str, who: str) -> Any:
    """Import "package.module:NAME"; refuses if that fails. `who` asks for it, such as "data set 'shapes'"."""
    if not is_reference(reference):
        raise _refused(f"{who}: '{reference}' is not of the form package.module:NAME", "correct its package.")
    name, _, attribute = reference.partition(":")
    if name.partition(".")[0] in sys.stdlib_module_names:
        raise _refused(f"{who}: {name} is a module of Python itself", "name a module of an installed package.")
    try:
        module = import_module(name)
    except (Exception, SystemExit) as error:
        raise _not_imported(name, error, who) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        what = f"{who}: the module {name} has no {attribute}"
        raise _refused(what, f"correct the name after '{name}:'.") from None
    except (Exception, SystemExit) as error:  # its own __getattr__
        raise _not_imported(f"{name}:{attribute}", error, who) from error


def record(offer: Offer, wanted: type, who: str) -> Any:
    """Import the record that is offered; refuses anything else."""
    with _as_workers_look():
        value = imported(offer.reference, who)
    if not issubclass(type(value), wanted):
        what = f"{who}: {offer.reference} is of type {type(value).__name__}, not {wanted.__name__}"
        raise _refused(what, f"make it a {wanted.__module__}.{wanted.__name__}.")
    for name, hint in get_type_hints(wanted).items():
        try:
            TypeAdapter(hint).validate_python(getattr(value, name))
        except (Exception, SystemExit):  # its own properties may raise anything
            what = f"{who}: '{name}' of {offer.reference} has a type that {wanted.__name__} does not accept"
            raise _refused(what, f"correct it as {wanted.__module__}.{wanted.__name__} says.") from None
    return value


@contextmanager
def _as_workers_look() -> Iterator[None]:
    """Prevent the import of a framework that is not loaded yet, and of anything in the directory Python started in."""
    absent = set(FRAMEWORKS) - sys.modules.keys()
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: the import fails
    try:
        with _outside_start_directory():
            yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


@contextmanager
def _outside_start_directory() -> Iterator[None]:
    unsafe = not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()])
    start_directory = sys.path.pop(0) if unsafe else None
    try:
        yield
    finally:
        if start_directory is not None:
            sys.path.insert(0, start_directory)


def _not_imported(module: str, error: BaseException, who: str) -> Refusal:
    missing = (error.name if isinstance(error, ModuleNotFoundError) else None) or ""
    framework = missing.partition(".")[0]
    if framework in FRAMEWORKS and sys.modules.get(framework, error) is None:  # blocked by `record`
        what = f"{who}: {module} imports {framework} at its top, but tl-dist reads it before {framework} is loaded"
        return _refused(what, f"import {framework} inside the functions that use it.")
    if missing and f"{module}.".startswith(f"{missing}."):
        what = f"{who}: there is no module {missing} in this Python environment"
        return _refused(what, "install the package that has it; the working directory is not searched.")
    what = f"{who}: {module} cannot be imported ({type(error).__name__}: {error})"
    return _refused(what, "correct that package, or install what it needs.")


def identity(offer: Offer) -> dict[str, str]:
    """Return the distribution that an entry point names, and a digest of the code of an imported record's package."""
    parts = offer.reference.partition(":")[0].split(".")
    packages = (sys.modules[".".join(parts[: k + 1])] for k in range(len(parts)))
    top = next(package for package in packages if package.__file__)  # a namespace package has no file
    file = Path(str(top.__file__))
    known = {"distribution": offer.distribution} if offer.distribution else {}
    return {**known, "code": code_digest(file.parent if hasattr(top, "__path__") else file)}


def code_digest(root: Path) -> str:
    """Return a shortened sha256 over the names and bytes of the Python code below a directory, or of one file."""
    total, suffixes = hashlib.sha256(), tuple(all_suffixes())
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.name.endswith(suffixes))
    for path in files:
        if "__pycache__" not in path.parts:
            total.update(path.relative_to(root).as_posix().encode() + b"\0" + code_bytes(path))
    if not files:
        raise _refused(f"the code in {root} cannot be read", "install that package as files.")
    return total.hexdigest()[:16]


def code_bytes(file: Path) -> bytes:
    """Return the bytes that identify a file of code; two files of one object differ in how they were written."""
    if file.suffix == ".function":
        return json.dumps({**json.loads(file.read_bytes()), "object": ""}, sort_keys=True).encode()
    if file.suffix == ".keras":
        with zipfile.ZipFile(file) as archive:
            members = [[m.filename, m.CRC, m.file_size] for m in archive.infolist() if m.filename != "metadata.json"]
        return json.dumps(sorted(members)).encode()
    return file.read_bytes()


def source_of(file: Path) -> str:
    """Return the source of a file of code, for people: of a function that was kept, what its file has beside it."""
    if file.suffix == ".function":
        return str(json.loads(file.read_bytes())["source"])
    return file.read_text(errors="replace") if file.suffix == ".py" else ""


def _refused(what: str, fix: str) -> Refusal:
    return Refusal(f"{what}.", fix=fix, code=ExitCode.USAGE)
