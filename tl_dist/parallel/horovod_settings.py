"""How Horovod is set for what it reduces on: the CPU by Gloo or MPI, or GPUs by NCCL. Pure; no framework here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tl_dist.rendezvous import rank_layout

MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """What Horovod reads from its environment when it starts, and how gradients are put into buckets."""

    environment: Mapping[str, str]
    """a variable that is set already takes precedence"""
    bucket_bytes: int
    """gradients are summed in buckets of about this size, from the last layer to the first"""
    last_bytes: int
    """the first layers' gradients, which come last, go in a bucket of at most this size; 0: wherever they fall"""


def settings(*, gpus: bool, workers: int, stall_s: float) -> Settings:
    """Of a run with so many workers. `stall_s`: after it Horovod's inspector ends a job that hangs."""
    return Settings(
        {
            # Milliseconds between looks at the queue. A look wakes a thread. That costs a busy core more than the wait
            # does, since the sum is hidden behind other work. Beside a GPU cores are idle, a whole step may take 10 ms,
            # and each `sync` batch norm waits for a look. On many hosts a look is a round of messages itself.
            "HOROVOD_CYCLE_TIME": ("0.5" if workers <= 8 else "1") if gpus else "5",
            # A bucket is reduced by itself: what is fused with what must not depend on timing, or bits would.
            "HOROVOD_DISABLE_GROUP_FUSION": "1",
            # MPI waits for its peers in a loop, on a core that computes unless it yields: a fifth of a step.
            **({} if gpus else {"OMPI_MCA_mpi_yield_when_idle": "1"}),
            # Else the thread that starts reductions waits for each of them to end on the GPU.
            **({"HOROVOD_ENABLE_ASYNC_COMPLETION": "1"} if gpus else {}),
            rank_layout.GLOO_TIMEOUT_VARIABLE: str(rank_layout.gloo_timeout_s(workers)),
            "HOROVOD_STALL_CHECK_TIME_SECONDS": "30",
            "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": f"{stall_s:.0f}",
        },
        # NCCL needs some 30 MiB to use the links of a node; nothing hides the reduction of what comes last.
        bucket_bytes=(32 if gpus else 8) * MIB,
        last_bytes=2 * MIB if gpus else 0,
    )
