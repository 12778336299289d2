"""Data sets, backbones and strategies of other packages: by the name of an entry point, or as package.module:NAME.

Either leads to a record, as those in `registry` are, in a module of an installed package. `tl-dist` reads it before any
worker is there, so that module imports no framework; and it is looked for where workers look, which is not the working
directory. Nothing that was found is called unless it is such a record.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
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
# Not `__main__`, which starts a program when it is imported.
_REFERENCE = re.compile(r"(?!.*\b__main__\b)[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")


class Offer(NamedTuple):
    """Where the record of another package is."""

    reference: str
    """package.module:NAME"""
    distribution: str | None = None
    """name and version of the package whose entry point it is"""


def offers(group: str) -> dict[str, list[Offer]]:
    """What installed packages offer in a group of entry points, by name. Imports nothing."""
    found: dict[str, list[Offer]] = {}
    for point in _entry_points(tuple((folder, _changed(folder)) for folder in sys.path)).select(group=group):
        distribution = f"{point.dist.name} {point.dist.version}" if point.dist else None
        found.setdefault(point.name, []).append(Offer(point.value, distribution))
    return found


@functools.lru_cache(maxsize=1)
def _entry_points(folders: tuple[tuple[str, int], ...]) -> EntryPoints:
    """Of all groups; read again when `sys.path` is another one or a folder of it has changed: 5 ms of 230 packages."""
    found: Any = entry_points()  # in Python 3.11 another class, which selects alike
    return found


def _changed(folder: str) -> int:
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def is_reference(name: str) -> bool:
    """Whether a name has the form package.module:NAME."""
    return _REFERENCE.fullmatch(name) is not None


def imported(reference: str, who: str) -> Any:
    """The object behind "package.module:NAME"; refuses what cannot be had. `who` asks for it: "data set 'shapes'"."""
    if not is_reference(reference):
        raise _refused(f"{who}: '{reference}' is not of the form package.module:NAME", "correct its package.")
    name, _, attribute = reference.partition(":")
    if name.partition(".")[0] in sys.stdlib_module_names:
        raise _refused(f"{who}: {name} is a module of Python itself", "name one of an installed package.")
    try:
        module = import_module(name)
    except (Exception, SystemExit) as error:
        raise _not_imported(name, error, who) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        what = f"{who}: the module {name} has no {attribute}"
        raise _refused(what, f"correct what stands behind '{name}:'.") from None
    except (Exception, SystemExit) as error:  # its own __getattr__
        raise _not_imported(f"{name}:{attribute}", error, who) from error


def record(offer: Offer, wanted: type, who: str) -> Any:
    """The record that is offered; refuses anything else."""
    with _as_workers_look():
        found = imported(offer.reference, who)
    if not issubclass(type(found), wanted):
        what = f"{who}: {offer.reference} is of type {type(found).__name__}, not {wanted.__name__}"
        raise _refused(what, f"name a {wanted.__module__}.{wanted.__name__}.")
    for name, hint in get_type_hints(wanted).items():
        try:
            TypeAdapter(hint).validate_python(getattr(found, name))
        except (Exception, SystemExit):  # also of its own properties
            what = f"{who}: '{name}' of {offer.reference} is not what {wanted.__name__} takes"
            raise _refused(what, f"correct it as {wanted.__module__}.{wanted.__name__} says.") from None
    return found


@contextmanager
def _as_workers_look() -> Iterator[None]:
    """Within it no framework is imported that is not there yet, and nothing from the directory that Python began in."""
    absent = set(FRAMEWORKS) - sys.modules.keys()
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: the import fails
    unsafe = not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()])
    began_in = sys.path.pop(0) if unsafe else None
    try:
        yield
    finally:
        if began_in is not None:
            sys.path.insert(0, began_in)
        for name in absent:
            sys.modules.pop(name, None)


def _not_imported(module: str, error: BaseException, who: str) -> Refusal:
    missing = (error.name if isinstance(error, ModuleNotFoundError) else None) or ""
    framework = missing.partition(".")[0]
    if framework in FRAMEWORKS and sys.modules.get(framework, error) is None:  # kept away by `record`
        what = f"{who}: {module} imports {framework} at its top, and tl-dist reads it before there is one"
        return _refused(what, f"import {framework} inside the functions that use it.")
    if missing and f"{module}.".startswith(f"{missing}."):
        what = f"{who}: there is no module {missing} in this Python environment"
        return _refused(what, "install the package that has it; the working directory is not looked in.")
    what = f"{who}: {module} cannot be imported ({type(error).__name__}: {error})"
    return _refused(what, "correct that package, or install what it needs.")


def identity(offer: Offer) -> dict[str, str]:
    """The distribution, where an entry point says it, and a digest of the code of its record's top package.

    Of the record that has been read. The code of other packages, which this one imports, is not in the digest.
    """
    parts = offer.reference.partition(":")[0].split(".")
    packages = (sys.modules[".".join(parts[: k + 1])] for k in range(len(parts)))
    top = next(package for package in packages if package.__file__)  # a namespace package has no file
    file = Path(str(top.__file__))
    known = {"distribution": offer.distribution} if offer.distribution else {}
    return {**known, "code": code_digest(file.parent if hasattr(top, "__path__") else file)}


def code_digest(root: Path) -> str:
    """sha256 over the names and bytes of the Python code below a directory, or of one file, shortened."""
    total, suffixes = hashlib.sha256(), tuple(all_suffixes())
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.name.endswith(suffixes))
    for path in files:
        if "__pycache__" not in path.parts:
            total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    if not files:
        raise _refused(f"the code in {root} cannot be read", "install that package as files.")
    return total.hexdigest()[:16]


def _refused(what: str, fix: str) -> Refusal:
    return Refusal(f"{what}.", fix=fix, code=ExitCode.USAGE)
