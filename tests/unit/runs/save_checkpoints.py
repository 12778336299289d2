"""A run's writer without a model: takes the lock, restores, and saves some steps. Tests kill it.

    python -m tests.unit.runs.save_checkpoints RUN_DIR KEEP STEP...

Prints one JSON object: the step restored, and everything the checkpointer said.
"""

import json
import sys

import numpy as np

from tl_dist.refusal import Refusal
from tl_dist.runs.checkpoint import Checkpointer, restore
from tl_dist.runs.directory import RunDir
from tl_dist.runs.lock import Lock


def state(step: int) -> dict[str, np.ndarray]:
    """Arrays from which a test can tell the step."""
    return {
        "dense/kernel": np.full((4, 3), step, np.float32),
        "dense/bias": np.arange(3, dtype=np.float16) + step,
        "optimizer/iterations": np.array(step, np.int64),
    }


def main() -> int:
    run, keep, steps = RunDir(sys.argv[1]), int(sys.argv[2]), [int(step) for step in sys.argv[3:]]
    said: list[str] = []
    heartbeat_s = 0.2  # so that a test need not wait long for a stopped process to count as silent
    with (
        Lock.acquire(run, heartbeat_s=heartbeat_s) as lock,
        Checkpointer(run, keep=keep, owned=lock.owned) as saver,
    ):
        found = restore(run, log=said.append)
        for step in steps:
            saver.save(step, state(step), {"note": f"step {step}", "history": {}}, wait=True)
            said += saver.poll()
    assert "tensorflow" not in sys.modules
    print(json.dumps({"restored": found.step if found else None, "said": said}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Refusal as refusal:
        sys.stderr.write(f"{refusal}\n")
        sys.exit(refusal.code)
