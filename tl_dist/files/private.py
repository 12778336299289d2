"""Directories that only their owner can change: made, and checked before anything in them is believed or removed."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from tl_dist.refusal import ExitCode, Refusal

OTHER_ROOT = "use another directory with --runs"


def make_private(directory: Path) -> None:
    """Have a directory that only this user can change, made now or checked; a link to one will do."""
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=True)
    refuse_unsafe(directory, links=True)


def refuse_unsafe(
    directory: Path, *, links: bool = False, shared: bool = False, instead: str = OTHER_ROOT
) -> None:
    """Refuse (78) a directory through which another user could change what is read or written there.

    One that is not there is safe. A symbolic link only with `links`, and never one of another user. `shared`: a
    directory of a group, in which every entry that is used is checked in turn; refused only where every user can take
    an entry away.
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


def _unsafe(directory: Path, what: str, fix: str) -> Refusal:
    return Refusal(f"{directory} {what}.", fix=fix, code=ExitCode.UNSAFE)
