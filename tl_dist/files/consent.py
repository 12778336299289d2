"""Which files of code may run here: those that the user named, or trusts, by their content. Others came with a run."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tl_dist.files.atomic import write_atomically
from tl_dist.files.packages import user_cache


def grant(files: Iterable[Path]) -> None:
    """Let files run that the user names; what is no file is left to whoever opens it."""
    for file in filter(Path.is_file, files):
        mark = _mark(file)
        if not mark.exists():
            mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(mark, f"{file.absolute()}\n".encode())


def is_granted(file: Path) -> bool:
    """Return whether a file with this content may run."""
    return _mark(file).exists()


def _mark(file: Path) -> Path:
    with file.open("rb") as content:
        return user_cache() / "trusted" / hashlib.file_digest(content, "sha256").hexdigest()
