"""Which command is about to start a run: until the run has begun, that alone binds it to its config.

The claim is one small file. It ends with the process that wrote it, or with the first attempt of a job that waits.
"""

from __future__ import annotations

from pathlib import Path

from tl_dist.files import limits
from tl_dist.files.atomic import children, server_time_ns, write_atomically
from tl_dist.files.foreign import read_file
from tl_dist.runs.lock.owner import HEARTBEAT_S, Owner, OwningJob, decoded, encoded, still_runs, this_process

ELSEWHERE_S = 600.0
"""for so long a process on another machine, which cannot be looked at, is taken to start the run"""


def claim(file: Path, job: OwningJob | None = None) -> None:
    """Write that this process is about to start the run, or that `job` is."""
    write_atomically(file, encoded(this_process("tl-dist", job, HEARTBEAT_S)))


def claimant(file: Path, attempts: Path) -> Owner | None:
    """Who is about to start the run; None where nobody is, or this very process."""
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
