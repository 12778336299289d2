"""What each srun task of test_rendezvous runs: find the slot, start Horovod, add up rank + 1, say the sum."""

import json
import os
import sys

from tl_dist.rendezvous.barrier import await_peers
from tl_dist.rendezvous.rank_layout import expected_world_size, slurm_task_environment, started_by_launcher


def main() -> None:
    launcher = started_by_launcher(os.environ)
    os.environ.update(slurm_task_environment(os.environ))
    await_peers(os.environ, timeout_s=60)
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    outcome = {
        "rank": hvd.rank(),
        "size": hvd.size(),
        "local": [hvd.local_rank(), hvd.local_size()],
        "cross": [hvd.cross_rank(), hvd.cross_size()],
        "sum": float(hvd.allreduce(tf.constant(hvd.rank() + 1.0), op=hvd.Sum, name="sum")),
        "node": os.environ["SLURMD_NODENAME"],
        "launcher": launcher,
        "expected_size": expected_world_size(os.environ),
        "gloo": hvd.gloo_enabled(),
    }
    sys.stdout.write(json.dumps(outcome) + "\n")


main()
