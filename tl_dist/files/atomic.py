"""Atomic writes: a file is on the disk whole or not at all, and no symbolic link redirects a write."""

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

CHUNK_BYTES = 4 << 20  # written, then hashed while still in the processor's cache, without the GIL

LEFTOVER_S = 3600.0  # no small file takes longer to write

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
OUTPUT = 0o644
"""mode, less the umask, of a file that the user asked for; not more, because it may lie in a run"""


@dataclass(frozen=True)
class Written:
    """Size and digest of a file that was written."""

    size: int
    sha256: str


def write_file(path: Path, pieces: Iterable[Any], *, sync: bool = True, mode: int = 0o600) -> Written:
    """Write a new file from buffers and hash it; with `sync`, it is on the disk when this returns.

    Errors of write, fsync and close are raised, and the file is then unusable: after a failed fsync the
    kernel forgets which pages were dirty, so a second fsync would succeed and prove nothing.
    """
    digest = hashlib.sha256()
    size = 0
    fd = os.open(path, _CREATE, mode)
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
    """Open a log of this user to append to, creating it if missing; raises OSError for a symbolic link."""
    return os.open(path, _APPEND, 0o600)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE filesystems cannot fsync a directory; there is nothing else to call.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path, *, mode: int = 0o600) -> Iterator[int]:
    """Yield a descriptor of a new file that replaces `path` on success; on an error the old file is kept."""
    temporary = temporary_name(path)
    fd = os.open(temporary, _CREATE, mode)
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


def write_atomically(path: Path, data: bytes, *, exclusive: bool = False, mode: int = 0o600) -> None:
    """Write `data` to `path` so that every reader, even after a crash, finds the old file or the new one.

    With `exclusive`, raises FileExistsError if the file exists, even if it was created at the same moment.
    """
    temporary = temporary_name(path)
    try:
        write_file(temporary, [data], mode=mode)
        if exclusive:
            link_exclusively(temporary, path)
        else:
            os.rename(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    fsync_directory(path.parent)


def copy_into(source: Path, path: Path) -> None:
    """Copy the file `source`, perhaps from another disk, to `path` as `write_atomically` does."""
    with open(source, "rb") as file, replacing(path) as fd:
        while piece := file.read(CHUNK_BYTES):
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]


def write_output(path: Path, data: bytes, *, option: str) -> None:
    """Write `data` atomically to the file that the user named with `option`; refuses (73) if it cannot be written."""
    try:
        write_atomically(path, data, mode=OUTPUT)
    except OSError as error:
        what = f"{path} cannot be written: {reason(error)}."
        raise Refusal(what, fix=f"name another file with {option}.", code=ExitCode.CANNOT_CREATE) from error


def temporary_name(path: Path) -> Path:
    """Return an unused name beside `path`."""
    return path.with_name(f".tmp-{path.name}-{uuid4().hex}")


def link_exclusively(source: Path, target: Path) -> None:
    """Give the file `source` the name `target`; raises FileExistsError unless this call created the name."""
    try:
        os.link(source, target)
    except FileExistsError:
        # NFS repeats a call whose answer was lost; the repetition then fails because the first one succeeded.
        if not os.path.samestat(os.lstat(source), os.lstat(target)):
            raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.close(os.open(target, _CREATE, 0o600))
        os.rename(source, target)


@contextmanager
def open_directory(path: Path) -> Iterator[int]:
    """Yield a descriptor of a directory, not of a link to one; later look-ups see what the file server has now.

    Unless the directory is opened, an NFS client may believe for another minute that a name does not exist.
    """
    fd = os.open(path, _READ | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def children(directory: Path) -> list[Path]:
    """List a directory as its file server sees it now; empty if there is no such directory."""
    try:
        with open_directory(directory) as fd:
            return [directory / name for name in os.listdir(fd)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def server_time_ns(directory: Path) -> int:
    """Read the clock that stamps the files in `directory`: the mtime of a file created now.

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
    """Remove small files that interrupted processes left here, if they are old by the file server's clock."""
    before_ns = server_time_ns(directory) - LEFTOVER_S * 1e9
    for path in children(directory):
        with suppress(FileNotFoundError):
            status = path.lstat()
            ours = path.name.startswith((".tmp-", ".probe-")) and stat.S_ISREG(status.st_mode)
            if ours and status.st_mtime_ns < before_ns:
                path.unlink()


def reason(error: BaseException) -> str:
    """Describe an error in a few words, for a message."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def of_the_machine(error: BaseException) -> Refusal | None:
    """Turn a full disk or a missing permission into a refusal, whatever the command; None for any other error."""
    code = _OF_THE_MACHINE.get(error.errno or 0) if isinstance(error, OSError) else None
    if os.strerror(errno.ENOSPC) in str(error):  # libraries quote it in exceptions of their own
        code = ExitCode.STORAGE
    if code is None:
        return None
    what = reason(error) if isinstance(error, OSError) else os.strerror(errno.ENOSPC)
    return Refusal(f"{what}.", fix="free space or get access there, or name another place.", code=code)
