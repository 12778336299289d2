"""Opening a file that somebody else may have written: regular, bounded, and no link unless links make sense there."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from tl_dist.refusal import ExitCode, Refusal

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # opening a named pipe would wait for its writer


def open_regular(path: Path | str, *, dir_fd: int | None = None, links: bool = False) -> int:
    """A descriptor for reading a regular file; raises OSError for a pipe, a device, a directory.

    Also for a symbolic link, unless `links`: images and tables are linked by people who have them elsewhere, what
    tl_dist writes itself is not.
    """
    try:
        fd = os.open(path, _READ if links else _READ | os.O_NOFOLLOW, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP and not links:
            raise OSError(errno.ELOOP, "is a symbolic link", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return fd


def read_slice(path: Path, offset: int, length: int) -> bytes:
    """At most `length` bytes of a regular file, perhaps behind a link, from `offset`; raises OSError for another."""
    fd = open_regular(path, links=True)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def read_file(path: Path | str, *, max_bytes: int, dir_fd: int | None = None, links: bool = False) -> bytes:
    """All bytes of a regular file; raises OSError for anything else, and for more than `max_bytes`."""
    with os.fdopen(open_regular(path, dir_fd=dir_fd, links=links), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"is larger than {max_bytes:,} bytes", str(path))
        return file.read(size)  # Python asks for the memory of as many bytes before it reads the first


def refuse_other(path: Path, is_ours: Callable[[IO[bytes]], bool], *, what: str, option: str) -> None:
    """Refuse (73) to take the place of anything but a file that this command made before, as `is_ours` can tell."""
    if not os.path.lexists(path):
        return
    # A damaged file can raise nearly anything.
    with suppress(Exception), open(open_regular(path), "rb") as file:
        if is_ours(file):
            return
    raise Refusal(
        f"{path} is there already, and is not {what} that this command made.",
        fix=f"name another file with {option}, or move it away.",
        code=ExitCode.CANNOT_CREATE,
    )
