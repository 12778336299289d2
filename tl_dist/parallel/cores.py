"""How many cores a worker may keep busy. No framework here."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tl_dist.rendezvous.rank_layout import in_slurm_step, integer, local_workers


def share(own: int, host: int, workers: int) -> int:
    """Cores for one of `workers` on a host: it may run on `own` cores, and all of them together have `host`.

    A launcher that binds each worker to its own cores has divided them already; one that binds none has not.
    """
    return max(1, min(own, host // workers))


def own_share(env: Mapping[str, str]) -> int:
    """The cores of this worker, as its launcher has bound it or not."""
    return share(len(os.sched_getaffinity(0)), host_cores(env), local_workers(env))


def host_cores(env: Mapping[str, str]) -> int:
    """Cores that the workers of this run have together on this host.

    Slurm says how many the job has here. Other launchers start workers from a process that is not bound itself.
    """
    if in_slurm_step(env) and "SLURM_CPUS_ON_NODE" in env:
        return integer(env, "SLURM_CPUS_ON_NODE")
    try:
        # It has no number where it is outside of this container; then the first process here stands for it.
        return len(os.sched_getaffinity(os.getppid() or 1))
    except OSError:
        return os.cpu_count() or 1
