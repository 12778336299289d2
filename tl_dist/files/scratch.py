"""Scratch directories. The next command removes any whose owner was killed, and nothing else."""

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
"""holds the owner's host name; the owner keeps it locked, which ends with the process, however it ends"""


@contextmanager
def scratch(place: Path, stem: str) -> Iterator[Path]:
    """Create a private directory STEM-RANDOM in `place` and remove it at the end, unless `keep` was called.

    First removes others of this stem whose owners, of this user and host, are gone. Raises OSError without space.
    """
    with suppress(OSError), os.scandir(place) as entries:
        ours = [entry for entry in entries if re.fullmatch(re.escape(stem) + "-[a-z0-9_]{8}", entry.name)]
        for entry in ours:
            _remove_abandoned(Path(entry.path))
    directory = Path(tempfile.mkdtemp(prefix=f"{stem}-", dir=place))
    mark, held = directory / _MARK, -1
    try:
        held = os.open(directory / f"{_MARK}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # on a file system without locks nothing ever counts as abandoned
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(held, socket.gethostname().encode())
        os.rename(directory / f"{_MARK}.new", mark)
        yield directory
    finally:
        if held < 0 or any((directory / name).exists() for name in (_MARK, f"{_MARK}.new")):
            shutil.rmtree(directory, ignore_errors=True)
        if held >= 0:
            os.close(held)


def keep(directory: Path) -> None:
    """Keep a scratch directory for the user, who is told of it."""
    (directory / _MARK).unlink(missing_ok=True)


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
