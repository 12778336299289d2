"""Let one process at a time write into a run directory; a process that has lost the lock can tell.

Each owner has a file `lock/owner-00000007.json`; the highest number is the present owner. A process takes the lock by
*creating the next number*, in which exactly one can succeed. No owner's file is ever overwritten or moved by another:
a process that took owner 7 for dead, and then slept while 8 came and went, fails to create 8 or finds a higher number,
and does not get the lock. Only the owner of a higher number deletes lower ones.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tl_dist.files import limits
from tl_dist.files.atomic import (
    link_exclusively,
    open_directory,
    reason,
    server_time_ns,
    temporary_name,
    write_file,
)
from tl_dist.files.failpoint import failpoint
from tl_dist.files.foreign import open_regular
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.lock.owner import HEARTBEAT_S, Owner, OwningJob, decoded, encoded, still_runs, this_process

MISSED_HEARTBEATS = 5  # after so many an owner on another machine is taken for dead

_OWNER_FILE = re.compile(r"owner-([0-9]{8,})\.json")


class HasLock(Protocol):
    """Anything that can be locked, as a RunDir."""

    name: str
    lock_dir: Path


@dataclass(frozen=True)
class _Look:
    """One look at the highest owner file."""

    number: int
    owner: Owner | None  # None: the file cannot be read as an owner
    mtime_ns: int


class Lock:
    """The right to write into a run; a context manager. Get it by `acquire`."""

    def __init__(self, directory: Path, number: int, owner: Owner, fd: int, history: str) -> None:
        self.owner = owner
        self.history = history
        """why it could be taken: "free", or what happened to the previous owner"""
        self._directory = directory
        self._number = number
        self._fd = fd
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        run: HasLock,
        *,
        who: str = "worker",
        job: OwningJob | None = None,
        wait_s: float = 0.0,
        heartbeat_s: float = HEARTBEAT_S,
        sleep: Callable[[float], object] = time.sleep,
    ) -> Lock:
        """Own the run, or raise a Refusal that names the owner; wait for a live owner up to `wait_s`.

        Replaces an owner whose process is gone, of an earlier start of the same job, or elsewhere without a heartbeat.
        """
        me = this_process(who, job, heartbeat_s)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                seen = _look(run.lock_dir)
                history = _why_free(run.lock_dir, seen, me, sleep)
                if history:
                    failpoint("lock.judged", run.lock_dir)
                    lock = cls._take(run.lock_dir, seen.number + 1 if seen else 1, me, history)
                    if lock:
                        return lock
                    continue  # another process was quicker: look which
            except OSError as error:
                raise cannot_lock(run, error) from error
            if time.monotonic() >= deadline:
                raise _in_use(run)
            sleep(min(1.0, heartbeat_s))

    @classmethod
    def _take(cls, directory: Path, number: int, me: Owner, history: str) -> Lock | None:
        """Create owner file `number`; return None if another process has created it or a higher one."""
        path = _owner_file(directory, number)
        temporary = temporary_name(path)
        write_file(temporary, [encoded(me)], sync=False)  # a lock need not outlive a power cut
        fd = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
        try:
            link_exclusively(temporary, path)
        except OSError as error:
            os.close(fd)
            if isinstance(error, FileExistsError):
                return None
            raise
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        failpoint("lock.made", directory)
        # If this process looked long ago, its number may have been used and deleted: then a higher one exists.
        numbers = sorted(_numbers(directory))
        if not numbers or numbers[-1] != number:
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(path)
            return None
        # In ascending order: an earlier owner never finds its own file and none above it.
        for old in numbers[:-1]:
            with suppress(OSError):
                os.unlink(_owner_file(directory, old))
        return cls(directory, number, me, fd, history)

    def owned(self) -> bool:
        """Return True if this process is still the owner, by the files now; raise OSError if they cannot be read."""
        if self._lost or self._ended.is_set() or os.getpid() != self.owner.pid:
            return False
        try:
            seen = _look(self._directory)
        except (FileNotFoundError, NotADirectoryError):
            seen = None  # the directory was removed
        self._lost = seen is None or seen.owner is None or seen.owner.token != self.owner.token
        return not self._lost

    def refresh(self) -> None:
        """Update the heartbeat, through the descriptor: a successor's file is never touched."""
        os.utime(self._fd)

    def release(self) -> None:
        """Free the lock for the next process at once; do nothing if it was lost or released before."""
        if self._ended.is_set():
            return
        with suppress(OSError):  # a lock that is not released can be taken over after this process has ended
            if self.owned():
                # The file stays, so that numbers never start over. If this process was replaced a moment ago, the
                # file is created again below its successor's number, where it has no effect.
                path = _owner_file(self._directory, self._number)
                temporary = temporary_name(path)
                write_file(temporary, [encoded(self.owner, released=True)], sync=False)
                os.rename(temporary, path)
        self._ended.set()
        self._thread.join()
        os.close(self._fd)

    def _beat(self) -> None:
        while not self._ended.wait(self.owner.heartbeat_s):
            with suppress(OSError):  # storage may recover; until then the heartbeat grows old
                self.refresh()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def holder(run: HasLock) -> Owner | None:
    """Return the process that owns the run and may be alive, or None, for display only; raise OSError if unreadable."""
    seen = _look(run.lock_dir) if run.lock_dir.is_dir() else None
    if seen is None or seen.owner is None or seen.owner.released:
        return None
    if seen.owner.on_this_machine(this_process("", None, HEARTBEAT_S)):
        return seen.owner if still_runs(seen.owner) else None
    return seen.owner if _shown_age_s(run.lock_dir, seen) <= _patience_s(seen.owner) else None


def cannot_lock(run: HasLock, error: OSError) -> Refusal:
    """Return the refusal for a lock that can be neither read nor taken."""
    what = f"run '{run.name}' cannot be locked in {run.lock_dir} ({reason(error)})."
    fix = "make the run directory writable for this user, on this host."
    return Refusal(what, fix=fix, code=ExitCode.CANNOT_CREATE)


def _why_free(directory: Path, seen: _Look | None, me: Owner, sleep: Callable[[float], object]) -> str | None:
    """Return why the next number may be created, in words; None if the owner must be taken for alive."""
    owner = seen.owner if seen else None
    if seen is None or (owner and owner.released):
        return "free"
    if owner and owner.on_this_machine(me) and not still_runs(owner):
        return f"taken over from {owner}, which is gone"
    same_job = owner and owner.job and me.job and owner.job.id == me.job.id
    if owner and owner.job and me.job and same_job and owner.job.restart_count < me.job.restart_count:
        return f"taken over from {owner}, of the job's start {owner.job.restart_count}"
    if owner and owner.on_this_machine(me):
        return None  # alive, however old its heartbeat: it may be suspended, or starved of the processor
    patience_s = _patience_s(owner)
    if _age_s(directory, seen) <= patience_s:
        return None
    # One look is not enough: the server's clock may have been set between heartbeat and look.
    sleep(1.2 * patience_s / MISSED_HEARTBEATS)
    if _look(directory) != seen:
        return None
    return f"taken over from {owner or 'an unreadable owner'}, silent for {_age_s(directory, seen):.0f} s"


def _in_use(run: HasLock) -> Refusal:
    who = "another process"
    with suppress(OSError):
        seen = _look(run.lock_dir)
        if seen is not None:
            who = f"{seen.owner or who} (heartbeat {_shown_age_s(run.lock_dir, seen):.0f} s ago)"
    what = f"run '{run.name}' is in use by {who}."
    return Refusal(what, fix="wait for it, stop it, or use another name=NAME.", code=ExitCode.CANNOT_CREATE)


def _look(directory: Path) -> _Look | None:
    while True:
        number = max(_numbers(directory), default=None)
        if number is None:
            return None
        path = _owner_file(directory, number)
        try:
            fd = open_regular(path)  # opened before fstat: an NFS client fetches the mtime only then
        except FileNotFoundError:
            continue  # deleted between listing and reading
        try:
            return _Look(number, decoded(os.read(fd, limits.LOCK)), os.fstat(fd).st_mtime_ns)
        finally:
            os.close(fd)


def _numbers(directory: Path) -> list[int]:
    """Return the numbers of the owner files whose name is spelt exactly as `_owner_file` spells it."""
    with open_directory(directory) as fd:
        files = [(name, int(match[1])) for name in os.listdir(fd) if (match := _OWNER_FILE.fullmatch(name))]
    return [number for name, number in files if _owner_file(directory, number).name == name]


def _owner_file(directory: Path, number: int) -> Path:
    return directory / f"owner-{number:08d}.json"


def _age_s(directory: Path, seen: _Look) -> float:
    return max(0.0, (server_time_ns(directory) - seen.mtime_ns) / 1e9)


def _shown_age_s(directory: Path, seen: _Look) -> float:
    """Return the age for display: by this host's clock if the directory is another user's, or cannot be written."""
    if directory.stat().st_uid == os.geteuid():
        with suppress(OSError):
            return _age_s(directory, seen)
    return abs(time.time() - seen.mtime_ns / 1e9)  # a future date means that a clock was wrong


def _patience_s(owner: Owner | None) -> float:
    heartbeat_s = owner.heartbeat_s if owner else HEARTBEAT_S
    return MISSED_HEARTBEATS * min(max(heartbeat_s, 0.1), 60.0)
