"""What a failed collective means, from the words of what carried it: Horovod, Gloo, MPI or NCCL. Pure."""

from __future__ import annotations

import re

from tl_dist.refusal import ExitCode, Refusal

_CARRIERS = ("nccl", "gloo", "mpi_", "horovod")
"""the one that knows most first: Horovod's own line often only says that something failed"""

_OF_THE_GRAPH = ('File "', "Detected at node")
"""how lines begin that say where an operation was made, not what became of it"""


def refusal_of(rank: int, said: str) -> Refusal | None:
    """The error for a person; None where none of them said it.

    A peer that is gone is PEER_LOST, and another attempt helps; NCCL's "invalid usage" is the same each time.
    """
    line = telling_line(said)
    if line is None:
        return None
    if re.search(r"invalid usage|duplicate gpu", said, re.IGNORECASE):
        return Refusal(
            f"rank {rank}: NCCL cannot be used like this ({line}).",
            fix="give each worker a GPU of its own: no more workers on a host than it has GPUs.",
            code=ExitCode.USAGE,
        )
    return Refusal(
        f"rank {rank}: a collective failed, since another worker {_fate(said)} ({line}).",
        fix="see the log of the first failing rank; the same command resumes from the last checkpoint.",
        code=ExitCode.PEER_LOST,
    )


def telling_line(said: str) -> str | None:
    """The line of an error in which a carrier of collectives says why; None where no line names one."""
    lines = [line.strip() for line in said.splitlines()]
    lines = [line for line in lines if not line.startswith(_OF_THE_GRAPH)]
    for carrier in _CARRIERS:
        for line in lines:
            if carrier in line.lower():
                return line[:200]
    return None


def _fate(said: str) -> str:
    """What became of a peer: a connection that ended is a process that did."""
    if re.search(r"timed out|timeout", said, re.IGNORECASE):
        return "stalled or cannot be reached"
    if re.search(r"connection (closed|reset)|broken pipe|connection refused", said, re.IGNORECASE):
        return "died"
    return "died or stalled"
