"""Claim a run that a command is about to start: until the run has begun, only the claim binds it to its config.

The claim is one small file. It expires with the process that wrote it, or with the first attempt of a queued job.
"""

from __future__ import annotations

from pathlib import Path

from tl_dist.files import limits
from tl_dist.files.atomic import children, server_time_ns, write_atomically
from tl_dist.files.foreign import read_file
from tl_dist.runs.lock.owner import HEARTBEAT_S, Owner, OwningJob, decoded, encoded, still_runs, this_process

ELSEWHERE_S = 600.0
"""how long a claim from another machine, whose processes cannot be looked up, is valid"""


def claim(file: Path, job: OwningJob | None = None) -> None:
    """Record that this process, or `job`, is about to start the run."""
    write_atomically(file, encoded(this_process("tl-dist", job, HEARTBEAT_S)))


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
