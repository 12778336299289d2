"""A worker takes its share of the cores once, whether its launcher has bound it to them or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tl_dist.rendezvous import rank_layout

ROOT = Path(__file__).parents[3]
STEP = {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("own", "host", "workers", "expected"),
    [
        (14, 112, 8, 14),  # bound by the launcher, as Slurm and mpirun do
        (112, 112, 8, 14),  # not bound
        (14, 112, 1, 14),  # one worker, bound
        (56, 112, 8, 14),  # bound to a socket that four workers share
        (14, 14, 1, 14),
        (4, 4, 2, 2),  # a container, or taskset around the launcher
        (1, 2, 8, 1),
        (2, 1, 2, 1),
    ],
)
def test_cores_are_divided_once(own: int, host: int, workers: int, expected: int) -> None:
    assert rank_layout.core_share(own, host, workers) == expected


def test_slurm_says_what_a_job_has_on_a_host() -> None:
    assert rank_layout.host_cores(STEP | {"SLURM_CPUS_ON_NODE": "112"}) == 112
    # A batch script is no worker, and what it starts by other means is not bound by Slurm.
    assert rank_layout.host_cores({"SLURM_CPUS_ON_NODE": "112"}) == len(os.sched_getaffinity(os.getppid()))


def own_share(environment: dict[str, str], *bind: str) -> int:
    """What a process under `bind` takes that this one has started."""
    code = "import os; from tl_dist.rendezvous import rank_layout; print(rank_layout.own_cores(os.environ))"
    argv = [*bind, sys.executable, "-c", code]
    return int(subprocess.check_output(argv, env=dict(os.environ, PYTHONPATH=str(ROOT), **environment)))


def test_a_worker_that_is_bound_keeps_all_of_its_cores() -> None:
    own = sorted(os.sched_getaffinity(0))
    bind = ["taskset", "--cpu-list", ",".join(map(str, own))]
    node = {**STEP, "SLURM_CPUS_ON_NODE": str(8 * len(own)), "HOROVOD_LOCAL_SIZE": "8"}
    assert own_share(node, *bind) == len(own)
    assert own_share({"HOROVOD_LOCAL_SIZE": "1"}, "taskset", "--cpu-list", str(own[0])) == 1


def test_workers_that_are_not_bound_share_the_cores_of_the_process_that_started_them() -> None:
    own = len(os.sched_getaffinity(0))
    assert own_share({"HOROVOD_LOCAL_SIZE": "2"}) == max(1, own // 2)
    assert own_share({}) == own
