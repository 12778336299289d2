"""Tasks that srun starts find each other by our own rendezvous, and add up the right number."""

import json
from collections.abc import Mapping
from typing import Any

from tests import forks
from tl_dist.rendezvous.rank_layout import Plan
from tl_dist.rendezvous.server import Rendezvous

from .slurm_cluster import SlurmCluster


def run_tasks(slurm: SlurmCluster, plan: Plan, env: Mapping[str, str]) -> list[dict[str, Any]]:
    """What each rank says, in rank order."""
    task = forks.of_module("tests.cluster.allreduce_task")
    output = slurm.run(
        "srun",
        "--mpi=none",
        f"--nodes={len(plan)}",
        f"--ntasks={sum(tasks for _, tasks in plan)}",
        f"--nodelist={','.join(host for host, _ in plan)}",
        "--distribution=block",
        "--kill-on-bad-exit=1",
        *task["args"],
        env=task["env"] | env,
    )
    said = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return sorted(said, key=lambda outcome: outcome["rank"])


def test_uneven_nodes_meet_at_our_rendezvous(slurm: SlurmCluster) -> None:
    plan = [("node2", 2), ("node3", 1)]
    with Rendezvous(plan, "127.0.0.1") as rendezvous:
        said = run_tasks(slurm, plan, rendezvous.job_environment())
    assert [(o["rank"], o["node"], o["local"], o["cross"], o["sum"]) for o in said] == [
        (0, "node2", [0, 2], [0, 2], 6.0),
        (1, "node2", [1, 2], [0, 1], 6.0),
        (2, "node3", [0, 1], [1, 2], 6.0),
    ]
    for outcome in said:
        assert outcome["size"] == outcome["expected_size"] == 3
        assert outcome["launcher"] == "srun"
        assert outcome["gloo"]
