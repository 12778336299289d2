"""Count the cores that a worker may use. Imports no framework."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tl_dist.rendezvous.rank_layout import in_slurm_step, integer, local_workers


def share(own: int, host: int, workers: int) -> int:
    """Return the cores for one of `workers` on a host that may run on `own` cores, and all together on `host` cores.

    A launcher that binds each worker to cores of its own has divided them already; others have not.
    """
    return max(1, min(own, host // workers))


def own_share(env: Mapping[str, str]) -> int:
    """Return the number of cores of this worker, bound by its launcher or not."""
    return share(len(os.sched_getaffinity(0)), host_cores(env), local_workers(env))


def host_cores(env: Mapping[str, str]) -> int:
    """Return the number of cores that all workers of this run share on this host.

    Slurm tells it. Other launchers start workers from a process that is not bound itself, so the parent's cores count.
    """
    if in_slurm_step(env) and "SLURM_CPUS_ON_NODE" in env:
        return integer(env, "SLURM_CPUS_ON_NODE")
    try:
        # The parent's pid is 0 if it is outside of this container; then pid 1 stands for it.
        return len(os.sched_getaffinity(os.getppid() or 1))
    except OSError:
        return os.cpu_count() or 1
