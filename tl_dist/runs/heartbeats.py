"""What each worker last said of itself, as small files that the supervisor reads."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tl_dist.files.atomic import children, server_time_ns
from tl_dist.files.foreign import read_file

_RECORD_BYTES = 512
_FILE = re.compile(r"rank_(\d{4,})")


class Beat(NamedTuple):
    """The last word of one worker."""

    age_s: float
    phase: str
    step: int
    host: str
    pid: int
    number: int = 0
    """beats so far: workers go in step, so of several that are silent the one with the fewest holds up the others"""
    patience_s: float = 0.0
    """how long this phase may last, where that is longer than others may"""


class Heartbeats:
    """The beats in one directory: a worker writes its own, the supervisor reads all."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._fds: dict[int, int] = {}
        self._number = 0
        self._seen: dict[int, tuple[int, float, float]] = {}  # mtime, its age when first seen, when that was

    def beat(self, rank: int, phase: str, step: int, patience_s: float = 0.0) -> None:
        """Show that worker `rank` lives, and what it does: three system calls, and no wait for a disk."""
        self._number += 1
        facts = {"phase": phase[:100], "step": step, "host": os.uname().nodename, "pid": os.getpid()}
        facts |= {"number": self._number, "patience_s": patience_s}
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
        """The last word of every worker. Ages need no agreement between the clocks of hosts, nor steady ones.

        When this object first sees a beat, its age is taken on the file server's clock; while the beat stays
        the same, this process's monotonic clock goes on from there.
        """
        beats = {}
        for path in children(self._directory):
            match = _FILE.fullmatch(path.name)
            if not match:
                continue
            rank = int(match[1])
            try:
                facts = json.loads(read_file(path, max_bytes=_RECORD_BYTES))
                phase, step, host, pid = (facts[key] for key in ("phase", "step", "host", "pid"))
                number, patience_s = facts.get("number", 0), facts.get("patience_s", 0.0)
                since_s = self._age_s(rank, path.stat().st_mtime_ns)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # being written for the first time, or cleared
            beats[rank] = Beat(since_s, phase, step, host, pid, number, patience_s)
        return beats

    def clear(self) -> None:
        """Forget the workers of an earlier attempt; call it before the next ones start."""
        self._seen.clear()
        for path in children(self._directory):
            path.unlink(missing_ok=True)

    def _age_s(self, rank: int, mtime_ns: int) -> float:
        now = self._clock()
        if rank not in self._seen:
            age_s = max(0.0, (server_time_ns(self._directory) - mtime_ns) / 1e9)
            self._seen[rank] = (mtime_ns, age_s, now)
        elif self._seen[rank][0] != mtime_ns:
            self._seen[rank] = (mtime_ns, 0.0, now)
        _, age_s, since = self._seen[rank]
        return age_s + now - since
