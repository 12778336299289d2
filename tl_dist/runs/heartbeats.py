"""Exchange heartbeats: small files in which each worker tells the supervisor its phase and step."""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tl_dist.files.atomic import children, server_time_ns
from tl_dist.files.foreign import open_regular

_RECORD_BYTES = 512
_READERS = 16
_FILE = re.compile(r"rank_(\d{4,})")


class Beat(NamedTuple):
    """The last heartbeat of one worker."""

    age_s: float
    phase: str
    step: int
    host: str
    pid: int
    number: int = 0
    """beats so far: workers advance in lockstep, so the silent one with the fewest beats blocks the others"""
    patience_s: float = 0.0
    """how long this phase may last, if that is longer than usual"""


class Heartbeats:
    """The heartbeats in one directory: a worker writes its own, the supervisor reads all."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._every_s = 0.0
        self._lock = threading.Lock()
        self._held: tuple[int, dict[str, Any], float] | None = None  # rank, facts, time of the beat
        self._wrote_at = float("-inf")
        self._fds: dict[int, int] = {}
        self._number = 0
        # By rank: mtime, its age when first seen, time of that look.
        self._seen: dict[int, tuple[int, float, float]] = {}

    def space(self, every_s: float) -> None:
        """Write at most one beat in `every_s` from now on, the last one at the end of that time, by another thread.

        This one may hang by then, and the supervisor compares the last beats of all. A held beat is written at once.
        """
        self._every_s = every_s
        self._write_held()

    def beat(self, rank: int, phase: str, step: int, patience_s: float = 0.0) -> None:
        """Report that worker `rank` is alive, and its phase: at most three system calls, and no wait for a disk."""
        self._number += 1
        facts = {"phase": phase[:100], "step": step, "host": os.uname().nodename, "pid": os.getpid()}
        facts |= {"number": self._number, "patience_s": patience_s}
        with self._lock:
            now = self._clock()
            due_s = self._wrote_at + self._every_s - now
            if due_s <= 0:
                self._write(rank, facts)
            else:
                if self._held is None:
                    arguments = (due_s, self._wrote_at)
                    threading.Thread(target=self._write_held, args=arguments, daemon=True).start()
                self._held = (rank, facts, now)

    def _write_held(self, after_s: float = 0.0, wrote_at: float | None = None) -> None:
        """Write the held beat `after_s` later, unless one was written since `wrote_at`: then another thread does."""
        time.sleep(after_s)
        with self._lock, suppress(OSError):  # this process may have ended its run, and the directory be gone
            if self._held is not None and wrote_at in (None, self._wrote_at):
                rank, facts, at = self._held
                self._write(rank, {**facts, "held_s": round(self._clock() - at, 3)})

    def _write(self, rank: int, facts: Mapping[str, Any]) -> None:
        self._wrote_at, self._held = self._clock(), None
        fd = self._fds.get(rank)
        if fd is None or os.fstat(fd).st_nlink == 0:  # not open yet, or cleared since
            if fd is not None:
                os.close(fd)
            path = self._directory / f"rank_{rank:04d}"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            self._fds[rank] = fd
        os.pwrite(fd, json.dumps(facts).encode().ljust(_RECORD_BYTES), 0)
        os.utime(fd)  # an NFS client may keep the write to itself, but not this

    def read(self) -> dict[int, Beat]:
        """Return the last heartbeat of every worker. Ages do not depend on synchronised or steady clocks of hosts.

        A beat's age at first sight is by the file server's clock; to that, this process's monotonic clock adds.
        """
        paths = [path for path in children(self._directory) if _FILE.fullmatch(path.name)]
        with ThreadPoolExecutor(_READERS) as pool:  # each waits for the file server
            contents = list(pool.map(_read, paths) if len(paths) > _READERS else map(_read, paths))
        server_ns = None
        beats = {}
        for path, content in zip(paths, contents, strict=True):
            if content is None:
                continue
            facts, mtime_ns = content
            rank = int(path.name.removeprefix("rank_"))
            if rank not in self._seen and server_ns is None:
                server_ns = server_time_ns(self._directory)
            age_s = self._age_s(rank, mtime_ns, server_ns or mtime_ns) + facts.pop("held_s", 0.0)
            beats[rank] = Beat(age_s, **facts)
        return beats

    def clear(self) -> None:
        """Remove the beats of an earlier attempt; call it before the next workers start."""
        self._seen.clear()
        for path in children(self._directory):
            path.unlink(missing_ok=True)

    def _age_s(self, rank: int, mtime_ns: int, server_ns: int) -> float:
        now = self._clock()
        if rank not in self._seen:
            self._seen[rank] = (mtime_ns, max(0.0, (server_ns - mtime_ns) / 1e9), now)
        elif self._seen[rank][0] != mtime_ns:
            self._seen[rank] = (mtime_ns, 0.0, now)
        _, age_s, since = self._seen[rank]
        return age_s + now - since


def _read(path: Path) -> tuple[dict[str, Any], int] | None:
    """Read one beat and its mtime; None if the file is being created or cleared, or holds no beat."""
    try:
        fd = open_regular(path)
        try:
            record = json.loads(os.read(fd, _RECORD_BYTES))
            mtime_ns = os.fstat(fd).st_mtime_ns
        finally:
            os.close(fd)
        facts = {key: record[key] for key in ("phase", "step", "host", "pid")}
        facts |= {key: record.get(key, 0) for key in ("number", "patience_s", "held_s")}
        return facts, mtime_ns
    except (OSError, ValueError, KeyError, TypeError):
        return None
