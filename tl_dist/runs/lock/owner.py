"""Describe a process so that another one can tell later if it still exists.

By such a description a command claims a run that it is about to start, until the run has begun or the process ended.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tl_dist.files import limits
from tl_dist.files.atomic import children, server_time_ns
from tl_dist.files.foreign import read_file

HEARTBEAT_S = 5.0
ELSEWHERE_S = 600.0
"""how long a claim from another machine, whose processes cannot be looked up, is valid"""


@dataclass(frozen=True)
class OwningJob:
    """The job that a worker belongs to; `restart_count` grows each time the scheduler requeues it."""

    id: str
    restart_count: int = 0


@dataclass(frozen=True)
class Owner:
    """The description of a process, by which another one can tell if it still exists."""

    who: str
    host: str
    pid: int
    started: int  # clock ticks after boot: a pid may be reused, a pid with its start time is not
    boot: str
    namespaces: tuple[int, int]  # of pids and of time: in others, these numbers mean other processes
    token: str
    job: OwningJob | None = None
    heartbeat_s: float = HEARTBEAT_S
    taken_at: float = 0.0  # for information only; never compared
    released: bool = False

    def __str__(self) -> str:
        job = f" of SLURM job {self.job.id}" if self.job else ""
        return f"{self.who} with pid {self.pid} on {self.host}{job}"

    def on_this_machine(self, me: Owner) -> bool:
        """Return True if `self.pid` and `self.started` can be looked up from here."""
        places = [(owner.host, owner.boot, owner.namespaces) for owner in (self, me)]
        return bool(me.boot) and places[0] == places[1]


def encoded(owner: Owner, **changes: Any) -> bytes:
    """Return the content of an owner file."""
    return json.dumps(asdict(owner) | changes, indent=1).encode()


def decoded(data: bytes) -> Owner | None:
    """Parse the owner in a file's content; None if it holds none."""
    try:
        fields = json.loads(data)
        job = OwningJob(**fields.pop("job")) if fields.get("job") else None
        owner = Owner(**fields | {"namespaces": tuple(fields["namespaces"]), "job": job})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    numbers = (owner.pid, owner.started, owner.heartbeat_s, job.restart_count if job else 0)
    # Not NaN, with which no age compares as older; nor a number that no process can have.
    return owner if all(isinstance(n, int | float) and abs(n) < 1e15 for n in numbers) else None


def this_process(who: str, job: OwningJob | None, heartbeat_s: float) -> Owner:
    """Describe the calling process."""
    boot, namespaces, started = "", (0, 0), 0
    with suppress(OSError):  # without /proc nothing can be looked up, and heartbeats decide
        namespaces = (_namespace("pid"), _namespace("time"))
        started = int(_stat(os.getpid())[19])
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Owner(
        who=who,
        host=os.uname().nodename,
        pid=os.getpid(),
        started=started,
        boot=boot,
        namespaces=namespaces,
        token=os.urandom(16).hex(),
        job=job,
        heartbeat_s=heartbeat_s,
        taken_at=time.time(),
    )


def _namespace(kind: str) -> int:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except FileNotFoundError:
        return 0  # the kernel has no such namespaces (time: before 5.6)


def still_runs(owner: Owner) -> bool:
    """Return True if a process of this machine still exists; a zombie does not."""
    patience = time.monotonic() + 2.0
    while True:
        try:
            fields = _stat(owner.pid)
        except (FileNotFoundError, ProcessLookupError):
            return False
        state, num_threads, started = fields[0], int(fields[17]), int(fields[19])
        if started != owner.started or (state in "ZX" and num_threads <= 1):
            return False
        if state not in "ZX" or time.monotonic() > patience:
            return True
        time.sleep(0.01)  # killed, but one of its threads may still be in a system call, such as a rename


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on (proc(5)): state, ..., threads, ..., start time."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def claimant(file: Path, attempts: Path) -> Owner | None:
    """Return the process or job that is about to start the run; None if there is none, or it is this process."""
    try:
        owner, written_ns = decoded(read_file(file, max_bytes=limits.LOCK)), file.stat().st_mtime_ns
    except OSError:
        return None
    if owner is None:
        return None
    if owner.job is not None:
        return None if children(attempts) else owner
    me = this_process("tl-dist", None, HEARTBEAT_S)
    if not owner.on_this_machine(me):
        return owner if server_time_ns(file.parent) - written_ns < ELSEWHERE_S * 1e9 else None
    mine = (owner.pid, owner.started) == (me.pid, me.started)
    return owner if not mine and still_runs(owner) else None
