"""Where an export goes: a directory that is new, or holds nothing but what an earlier export has written there."""

from __future__ import annotations

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
from tl_dist.files.scratch import scratch
from tl_dist.models.export import FORMATS
from tl_dist.refusal import ExitCode, Refusal

REPORT = "export.json"
_KEYS = {"run", "step", "to", "numbers", "file", "entries"}


@contextmanager
def directory(target: Path) -> Iterator[Path]:
    """A new directory that takes the place of `target` at the end: else nothing of it stays.

    Refuses (73), now and at the end, to take the place of anything that an export has not written.
    """
    _refuse_foreign(target)
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with scratch(target.parent, f".tmp-{target.name}") as place:
            made = place / "export"
            made.mkdir()
            yield made
            for path in (
                made,
                *made.rglob("*"),
            ):  # also where a notebook has another umask: it may lie in a run
                path.chmod(path.stat().st_mode & 0o755)
            _refuse_foreign(target)
            _put(made, target)
    except Exception as error:
        refusal = of_the_machine(error)  # in whichever words the writer of a format has for it
        if refusal is None and not isinstance(error, OSError):
            raise
        raise Refusal(
            f"{target} cannot be written ({refusal.what.rstrip('.') if refusal else reason(error)}).",
            fix="name another directory with --out, on a disk with free space.",
            code=ExitCode.STORAGE,
        ) from error


def write_report(made: Path, report: Mapping[str, Any]) -> None:
    """Leave the report with all that lies beside it, by which a later export knows what it may remove."""
    whole = {**report, "entries": dict(_entries(made))}
    write_atomically(made / REPORT, json.dumps(whole, indent=1).encode())


def _entries(place: Path) -> Iterator[tuple[str, str]]:
    """What is below a directory by relative path, but the report: of a file its digest, else what it is."""
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
    """That of an earlier export; empty where there is none of ours."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(read_file(target / REPORT, max_bytes=limits.EVALUATION))
        if isinstance(found, dict) and found.keys() >= _KEYS and isinstance(found["entries"], dict):
            form = FORMATS.get(found["to"]) if isinstance(found["to"], str) else None
            if form is not None and found["file"] == form.file:
                return found
    return {}


def _refuse_foreign(target: Path) -> None:
    if not os.path.lexists(target):
        return
    found = {} if target.is_symlink() else _report_in(target)
    if not found:
        what = "is there already, and is not what this command made"
    else:
        listed = found["entries"]
        foreign = [name for name, what in _entries(target) if listed.get(name) != what]
        if not foreign:
            return
        how = "has been changed since" if foreign[0] in listed else "is not of the export that is there"
        what = f"holds {foreign[0]}, which {how}"
    raise Refusal(
        f"{target} {what}.",
        fix="name another directory with --out, or move this one away.",
        code=ExitCode.CANNOT_CREATE,
    )


def _put(made: Path, target: Path) -> None:
    """Give the export its name; of what has it now, only what an export has listed is removed."""
    old = temporary_name(target)
    if os.path.lexists(target):
        target.rename(old)
    try:
        made.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    listed = _report_in(old).get("entries", {})
    there = [(name, what) for name, what in _entries(old) if listed.get(name) == what]
    for name, what in reversed(there):  # what is in a directory comes behind it
        with suppress(OSError):
            (old / name).rmdir() if what == "directory" else (old / name).unlink()
    with suppress(FileNotFoundError):
        if os.listdir(old) in ([REPORT], []):
            (old / REPORT).unlink(missing_ok=True)
            old.rmdir()
            return
        raise Refusal(
            f"{target} is written; what came into it meanwhile is in {old}.",
            fix="move that where you want it.",
            code=ExitCode.CANNOT_CREATE,
        )
