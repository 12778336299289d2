"""Files that are on the disk whole or not at all, and files that are read without being led elsewhere.

The run directory, its lock and its checkpoints all go through these few functions.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tl_dist.refusal import ExitCode, Refusal

CHUNK_BYTES = 4 << 20  # hashed and written in turn: still in the processor's cache, and without the GIL

LEFTOVER_S = 3600.0  # a small file that is being written is no older

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_OF_THE_MACHINE = {
    errno.ENOSPC: ExitCode.STORAGE,
    errno.EDQUOT: ExitCode.STORAGE,
    errno.EROFS: ExitCode.CANNOT_CREATE,
    errno.EACCES: ExitCode.CANNOT_CREATE,
}
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Written:
    """What a file holds."""

    size: int
    sha256: str


def write_file(path: Path, pieces: Iterable[Any], *, sync: bool = True) -> Written:
    """Write a new file from buffers, hashing on the way; with `sync`, on the disk when this returns.

    An error of write, fsync or close is raised, and then the file is of no use: after a failed fsync the
    kernel forgets which pages were dirty, so a second fsync would succeed and prove nothing.
    """
    digest = hashlib.sha256()
    size = 0
    fd = os.open(path, _CREATE, 0o600)
    try:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                written = os.write(fd, view[:CHUNK_BYTES])
                digest.update(view[:written])
                size += written
                view = view[written:]
        if sync:
            os.fsync(fd)
    except BaseException:
        with suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)
    return Written(size, digest.hexdigest())


def open_to_append(path: Path) -> int:
    """A descriptor that appends to a log of this user's, made where there is none; raises OSError for a link."""
    return os.open(path, _APPEND, 0o600)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE filesystems know no fsync of a directory; there is nothing else to call.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path) -> Iterator[int]:
    """A descriptor of a new file, which takes the place of `path` at the end: else the old file stays as it was."""
    temporary = temporary_name(path)
    fd = os.open(temporary, _CREATE, 0o600)
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    fsync_directory(path.parent)


def write_atomically(path: Path, data: bytes, *, exclusive: bool = False) -> None:
    """Put `data` at `path`: every reader, and a crash at any moment, finds the old file or the new one.

    With `exclusive`, raises FileExistsError when there is a file already, even one made at the same moment.
    """
    temporary = temporary_name(path)
    try:
        write_file(temporary, [data])
        if exclusive:
            link_exclusively(temporary, path)
        else:
            os.rename(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    fsync_directory(path.parent)


def copy_into(source: Path, path: Path) -> None:
    """Put a copy of the file `source`, perhaps of another disk, at `path`, as `write_atomically` does."""
    with open(source, "rb") as file, replacing(path) as fd:
        while piece := file.read(CHUNK_BYTES):
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]


def write_output(path: Path, data: bytes, *, option: str) -> None:
    """The same for a file that a person asked for by `option`; refuses (73) where it cannot be written."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise Refusal(
            f"{path} cannot be written: {reason(error)}.",
            fix=f"name another file with {option}.",
            code=ExitCode.CANNOT_CREATE,
        ) from error


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody else uses."""
    return path.with_name(f".tmp-{path.name}-{uuid4().hex}")


def link_exclusively(source: Path, target: Path) -> None:
    """Give the file `source` the name `target`; raises FileExistsError unless this call made the name."""
    try:
        os.link(source, target)
    except FileExistsError:
        # NFS repeats a call whose answer was lost, and then refuses what the first one did.
        if not os.path.samestat(os.lstat(source), os.lstat(target)):
            raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.close(os.open(target, _CREATE, 0o600))
        os.rename(source, target)


@contextmanager
def open_directory(path: Path) -> Iterator[int]:
    """A descriptor of a directory that is no link; names looked up after this are the file server's of now.

    Without opening the directory, an NFS client may go on for a minute believing that a name does not exist.
    """
    fd = os.open(path, _READ | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def children(directory: Path) -> list[Path]:
    """What is in a directory, as its file server sees it now; nothing, if there is no such directory."""
    try:
        with open_directory(directory) as fd:
            return [directory / name for name in os.listdir(fd)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def server_time_ns(directory: Path) -> int:
    """The clock that stamps the files in `directory`, now: the mtime of a file made this moment.

    Ages of files are differences on this one clock; the clocks of two hosts are never compared.
    """
    probe = directory / f".probe-{uuid4().hex}"
    fd = os.open(probe, _CREATE, 0o600)
    try:
        return os.fstat(fd).st_mtime_ns
    finally:
        os.close(fd)
        os.unlink(probe)


def sweep(directory: Path) -> None:
    """Remove small files that interrupted processes left here, long ago by the file server's clock."""
    before_ns = server_time_ns(directory) - LEFTOVER_S * 1e9
    for path in children(directory):
        with suppress(FileNotFoundError):
            status = path.lstat()
            ours = path.name.startswith((".tmp-", ".probe-")) and stat.S_ISREG(status.st_mode)
            if ours and status.st_mtime_ns < before_ns:
                path.unlink()


def reason(error: BaseException) -> str:
    """An error as a few words for a message."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def of_the_machine(error: BaseException) -> Refusal | None:
    """What a disk or its owner refuses, whatever the command: nobody's bug. None for any other error."""
    code = _OF_THE_MACHINE.get(error.errno or 0) if isinstance(error, OSError) else None
    if os.strerror(errno.ENOSPC) in str(
        error
    ):  # the one word that libraries have for it, in errors of their own
        code = ExitCode.STORAGE
    if code is None:
        return None
    what = reason(error) if isinstance(error, OSError) else os.strerror(errno.ENOSPC)
    return Refusal(f"{what}.", fix="make room or get access there, or name another place.", code=code)
