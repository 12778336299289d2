"""Which files of code may run here: those that the user named, or trusts, by their content. Others came with a run."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from tl_dist.files.atomic import write_atomically
from tl_dist.files.packages import user_cache

TRUSTED = "TL_DIST_TRUSTED"
"""variable by which a launcher tells workers, whose hosts may have caches of their own, what may run"""
_TRUSTED: set[str] = set()


def grant(files: Iterable[Path]) -> None:
    """Let files run that the user names; what is no file is left to whoever opens it."""
    for file in filter(Path.is_file, files):
        mark = _mark(_digest(file))
        if not mark.exists():
            mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(mark, f"{file.absolute()}\n".encode())


def is_granted(file: Path) -> bool:
    """Return whether a file with this content may run."""
    return _may_run(_digest(file))


def for_workers(files: Iterable[Path]) -> dict[str, str]:
    """Return the variable that lets workers run the files that may run here; none if there are none."""
    digests = [*filter(_may_run, sorted(map(_digest, filter(Path.is_file, files))))]
    return {TRUSTED: ",".join(digests)} if digests else {}


def of_launcher(environment: Mapping[str, str]) -> None:
    """Let files run in this process that its launcher said may run."""
    _TRUSTED.update(filter(None, environment.get(TRUSTED, "").split(",")))


def _may_run(digest: str) -> bool:
    return digest in _TRUSTED or _mark(digest).exists()


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _mark(digest: str) -> Path:
    return user_cache() / "trusted" / digest
