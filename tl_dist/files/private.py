"""Create directories that only their owner can change, and check them before anything in them is trusted or removed."""

from __future__ import annotations

import os
import shlex
import stat
from contextlib import suppress
from pathlib import Path

from tl_dist.files import limits
from tl_dist.refusal import ExitCode, Refusal

_LOGS = (".out", ".log")
OTHER_ROOT = "use another directory with --runs"


def make_private(directory: Path) -> None:
    """Create a directory that only this user can change, or check an existing one or a link to one."""
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=True)
    refuse_unsafe(directory, links=True)


def refuse_unsafe(
    directory: Path, *, links: bool = False, shared: bool = False, instead: str = OTHER_ROOT
) -> None:
    """Refuse (78) a directory through which another user could change what is read or written there.

    A missing directory is safe; a link is accepted only with `links`, and never from another user. `shared`: a
    directory of a group, whose entries are checked one by one; refused only if every user can remove them.
    """
    if not os.path.lexists(directory):
        return
    entry = directory.lstat()
    if stat.S_ISLNK(entry.st_mode) and not links:
        raise _unsafe(directory, "is a symbolic link", f"remove the link, or {instead}.")
    if not directory.is_dir():
        raise _unsafe(directory, "is not a directory", f"move it away, or {instead}.")
    status = directory.stat()
    if shared:
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise _unsafe(directory, "can be written by every user", f"chmod o-w {directory}, or {instead}.")
        return
    for owner in (entry.st_uid, status.st_uid):
        if owner != os.geteuid():
            raise _unsafe(directory, f"belongs to user {owner}", f"use a directory of your own: {instead}.")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _unsafe(directory, "can be written by other users", f"chmod go-w {directory}")


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
                    raise _unsafe(
                        directory, f"holds more than {limits.RUN_ENTRIES:,} files", "move some away."
                    )
                path = Path(entry.path)
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISLNK(status.st_mode):
                        raise _unsafe(path, "is a symbolic link", "remove the link.")
                    if status.st_uid not in (me, 0):
                        fix = f"look at it, then: chown -hR {me} {quoted}"
                        raise _unsafe(path, f"belongs to user {status.st_uid}, who can have changed it", fix)
                    is_log = stat.S_ISREG(status.st_mode) and path.suffix in _LOGS
                    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not is_log:
                        fix = f"look at it, then: chmod -R go-w {quoted}"
                        raise _unsafe(path, "can be written by other users", fix)
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(path)


def _unsafe(directory: Path, what: str, fix: str) -> Refusal:
    return Refusal(f"{directory} {what}.", fix=fix, code=ExitCode.UNSAFE)
