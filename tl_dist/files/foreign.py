"""Open files that others may have written: regular, of bounded size, and no symbolic link unless allowed."""

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
    """Open a regular file for reading; raises OSError for anything else, and for a symbolic link unless `links`.

    Users link images and tables that lie elsewhere, whereas tl_dist's own files are never links.
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
    """Read at most `length` bytes from `offset` of a regular file, perhaps behind a link; raises OSError for others."""
    fd = open_regular(path, links=True)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def read_file(path: Path | str, *, max_bytes: int, dir_fd: int | None = None, links: bool = False) -> bytes:
    """Read a regular file; raises OSError for anything else, and for one larger than `max_bytes`."""
    with os.fdopen(open_regular(path, dir_fd=dir_fd, links=links), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"is larger than {max_bytes:,} bytes", str(path))
        return file.read(size)  # not the limit: Python allocates that much memory before it reads


def refuse_other(path: Path, is_ours: Callable[[IO[bytes]], bool], *, what: str, option: str) -> None:
    """Refuse (73) to overwrite anything but an earlier output of this command, which `is_ours` recognizes."""
    if not os.path.lexists(path):
        return
    # A damaged file can raise nearly anything.
    with suppress(Exception), open(open_regular(path), "rb") as file:
        if is_ours(file):
            return
    what = f"{path} exists already, and is not {what} that this command made."
    raise Refusal(what, fix=f"name another file with {option}, or move it away.", code=ExitCode.CANNOT_CREATE)


def refuse_other_picture(path: Path, is_ours: Callable[[int, int], bool], *, option: str) -> None:
    """Refuse (73) to overwrite anything but a PNG whose width and height `is_ours` recognizes."""
    from PIL import Image

    def of_our_size(png: IO[bytes]) -> bool:
        with Image.open(png, formats=["PNG"]) as image:
            return is_ours(image.width, image.height)

    refuse_other(path, of_our_size, what="a picture", option=option)
