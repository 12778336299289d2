"""Write an export to a directory that is new, or holds nothing but what an earlier export wrote there."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tl_dist.files import limits
from tl_dist.files.atomic import of_the_machine, reason, temporary_name, write_atomically
from tl_dist.files.foreign import open_regular, read_file
from tl_dist.files.private import scratch
from tl_dist.models.export import FORMATS
from tl_dist.refusal import ExitCode, Refusal

REPORT = "export.json"
_KEYS = {"run", "step", "to", "numbers", "file", "entries"}


@contextmanager
def directory(target: Path) -> Iterator[Path]:
    """Yield a new directory, which replaces `target` at the end, or is removed after an error.

    Refuse (73), now and at the end, to replace anything that an export has not written.
    """
    _refuse_foreign(target)
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with scratch(target.parent, f".tmp-{target.name}") as place:
            new = place / "export"
            new.mkdir()
            yield new
            # The export may lie in a run, which is refused if others can write in it; a notebook's umask may let them.
            for path in (new, *new.rglob("*")):
                path.chmod(path.stat().st_mode & 0o755)
            _refuse_foreign(target)
            _put(new, target)
    except Exception as error:
        refusal = of_the_machine(error)  # each writer of a format has its own words for a full disk
        if refusal is None and not isinstance(error, OSError):
            raise
        what = f"{target} cannot be written ({refusal.what.rstrip('.') if refusal else reason(error)})."
        fix = "name another directory with --out, on a disk with free space."
        raise Refusal(what, fix=fix, code=ExitCode.STORAGE) from error


def write_report(directory: Path, report: Mapping[str, Any]) -> None:
    """Write the report with a list of all files beside it, by which a later export knows what it may remove."""
    content = {**report, "entries": dict(_entries(directory))}
    write_atomically(directory / REPORT, json.dumps(content, indent=1).encode())


def _entries(place: Path) -> Iterator[tuple[str, str]]:
    """Yield each entry below a directory except the report: its relative path, and a file's digest or its kind."""
    for root, directories, files in os.walk(place):
        for name in [*directories, *files]:
            path = Path(root, name)
            relative = str(path.relative_to(place))
            if path.is_symlink() or name in directories:
                yield relative, "link" if path.is_symlink() else "directory"
            elif relative != REPORT:
                try:
                    with open(open_regular(path), "rb") as file:
                        yield relative, hashlib.file_digest(file, "sha256").hexdigest()
                except OSError as error:
                    yield relative, reason(error)


def _report_in(target: Path) -> dict[str, Any]:
    """Return the report of an earlier export; empty if no export lies there."""
    with suppress(OSError, ValueError, RecursionError):
        report = json.loads(read_file(target / REPORT, max_bytes=limits.EVALUATION))
        if isinstance(report, dict) and report.keys() >= _KEYS and isinstance(report["entries"], dict):
            form = FORMATS.get(report["to"]) if isinstance(report["to"], str) else None
            if form is not None and report["file"] == form.file:
                return report
    return {}


def _refuse_foreign(target: Path) -> None:
    if not os.path.lexists(target):
        return
    report = {} if target.is_symlink() else _report_in(target)
    if not report:
        what = f"{target} is there already, and is not what this command made."
    else:
        listed = report["entries"]
        foreign = [name for name, kind in _entries(target) if listed.get(name) != kind]
        if not foreign:
            return
        why = "has been changed since" if foreign[0] in listed else "does not belong to the export there"
        what = f"{target} holds {foreign[0]}, which {why}."
    fix = "name another directory with --out, or move this one away."
    raise Refusal(what, fix=fix, code=ExitCode.CANNOT_CREATE)


def _put(new: Path, target: Path) -> None:
    """Rename the export to `target`; of an earlier export there, remove only what its report lists."""
    old = temporary_name(target)
    if os.path.lexists(target):
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    listed = _report_in(old).get("entries", {})
    entries = [(name, kind) for name, kind in _entries(old) if listed.get(name) == kind]
    for name, kind in reversed(entries):  # the entries of a directory come after it
        with suppress(OSError):
            (old / name).rmdir() if kind == "directory" else (old / name).unlink()
    with suppress(FileNotFoundError):
        if os.listdir(old) in ([REPORT], []):
            (old / REPORT).unlink(missing_ok=True)
            old.rmdir()
            return
        what = f"{target} is written; files that were added to it meanwhile are in {old}."
        raise Refusal(what, fix="move that where you want it.", code=ExitCode.CANNOT_CREATE)
