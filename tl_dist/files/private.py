"""Create directories that only their owner can change, and check them before anything in them is trusted or removed.

The next command removes a scratch directory whose owner was killed, and nothing else.
"""

import fcntl
import os
import re
import shlex
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tl_dist.files import limits
from tl_dist.refusal import ExitCode, Refusal

_LOGS = (".out", ".log")
_MARK = ".maker"
"""holds the owner's host name; the owner keeps it locked, which ends with the process, however it ends"""
OTHER_ROOT = "use another directory with --runs"


def make_private(directory: Path) -> None:
    """Create a directory that only this user can change, or check an existing one or a link to one."""
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=True)
    refuse_unsafe(directory, links=True)


def refuse_unsafe(directory: Path, *, links: bool = False, shared: bool = False, instead: str = OTHER_ROOT) -> None:
    """Refuse (78) a directory through which another user could change what is read or written there.

    A missing directory is safe; a link is accepted only with `links`, and never from another user. `shared`: a
    directory of a group, whose entries are checked one by one; refused only if every user can remove them.
    """
    if not os.path.lexists(directory):
        return
    entry = directory.lstat()
    if stat.S_ISLNK(entry.st_mode) and not links:
        raise unsafe(directory, "is a symbolic link", f"remove the link, or {instead}.")
    if not directory.is_dir():
        raise unsafe(directory, "is not a directory", f"move it away, or {instead}.")
    status = directory.stat()
    if shared:
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise unsafe(directory, "can be written by every user", f"chmod o-w {directory}, or {instead}.")
        return
    for owner in (entry.st_uid, status.st_uid):
        if owner != os.geteuid():
            raise unsafe(directory, f"belongs to user {owner}", f"use a directory of your own: {instead}.")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise unsafe(directory, "can be written by other users", f"chmod go-w {directory}")


def refuse_unsafe_below(directory: Path) -> None:
    """Refuse (78) any entry, at any depth below this user's directory, that another user could have changed.

    That is a link, an entry of anyone but this user and root, and one that other users can write. Logs alone may be
    writable, because nothing trusts them: Slurm and shells create them with the user's umask. An entry that vanishes
    meanwhile was removed by a process of this user: nobody else can.
    """
    waiting, left, me = [directory], limits.RUN_ENTRIES, os.geteuid()
    quoted = shlex.quote(str(directory))
    while waiting:
        with suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                left -= 1
                if not left:
                    raise unsafe(directory, f"holds more than {limits.RUN_ENTRIES:,} files", "move some away.")
                path = Path(entry.path)
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISLNK(status.st_mode):
                        raise unsafe(path, "is a symbolic link", "remove the link.")
                    if status.st_uid not in (me, 0):
                        fix = f"look at it, then: chown -hR {me} {quoted}"
                        raise unsafe(path, f"belongs to user {status.st_uid}, who can have changed it", fix)
                    is_log = stat.S_ISREG(status.st_mode) and path.suffix in _LOGS
                    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not is_log:
                        fix = f"look at it, then: chmod -R go-w {quoted}"
                        raise unsafe(path, "can be written by other users", fix)
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(path)


def unsafe(path: Path, what: str, fix: str) -> Refusal:
    """Return the refusal (78) of a path of which nothing can be trusted."""
    return Refusal(f"{path} {what}.", fix=fix, code=ExitCode.UNSAFE)


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
