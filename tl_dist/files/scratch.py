"""Directories for what is in the making. The next command removes those whose makers were killed, and nothing else."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MARK = ".maker"
"""Names the host of the maker, who holds a lock on it: the end of a process, however it comes, releases that."""


@contextmanager
def scratch(place: Path, stem: str) -> Iterator[Path]:
    """A private directory STEM-RANDOM in `place`, removed at the end unless it was kept; raises OSError without room.

    Before that, others of this stem are removed whose makers, of this user and host, are gone.
    """
    with suppress(OSError), os.scandir(place) as entries:
        ours = [entry for entry in entries if re.fullmatch(re.escape(stem) + "-[a-z0-9_]{8}", entry.name)]
        for entry in ours:
            _remove_abandoned(Path(entry.path))
    made = Path(tempfile.mkdtemp(prefix=f"{stem}-", dir=place))
    mark, held = made / _MARK, -1
    try:
        held = os.open(made / f"{_MARK}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # without locks nobody gets it, and nothing is ever taken for abandoned
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(held, socket.gethostname().encode())
        os.rename(made / f"{_MARK}.new", mark)
        yield made
    finally:
        if held < 0 or any((made / name).exists() for name in (_MARK, f"{_MARK}.new")):
            shutil.rmtree(made, ignore_errors=True)
        if held >= 0:
            os.close(held)


def keep(made: Path) -> None:
    """Leave the directory to the person who is told of it."""
    (made / _MARK).unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    with suppress(OSError):
        fd = os.open(path / _MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if os.read(fd, 1000) == socket.gethostname().encode():
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)
