"""The numbers of one run do not change by accident: losses and final state are those that are kept in the repository.

Equal curves on every strategy would not show a change that shifts all of them alike. After one that is meant,
`python -m tests.end_to_end.test_golden_run "REASON"` writes the file again: the reason is kept with it.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.end_to_end.harness import ONE_WORKER, Workspace, bits, losses

GOLDEN = Path(__file__).parents[1] / "golden" / "run_tiny_digits.json"
CONFIG = """\
global_batch: 16
steps: 70
precision: float32
data: {name: digits, image_size: 32, augment: [pad_crop], validation_fraction: 0.1}
model: {backbone: tiny, weights: random, train_from: all, hidden: 16, dropout: 0.25}
optimizer:
  {name: sgd, learning_rate: 0.05, momentum: 0.9, weight_decay: 1e-3, clip_norm: 1.0, schedule: {name: cosine}}
evaluation: {every_epochs: 0.5}
report: {every_steps: 1, tensorboard: false}
runtime: {threads: 1}
"""
# Kernels that any machine of the last ten years has, so that the bits do not depend on which one it is.
ENVIRONMENT = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def numbers(directory: Path) -> dict[str, Any]:
    """Loss of every step and sha256 of the last state."""
    workspace = Workspace(directory, CONFIG)
    process = workspace.start(workspace.argv("golden", *ONE_WORKER), **ENVIRONMENT)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    run = workspace.run("golden")
    return {"losses": list(losses(run).values()), "sha256_of_state": bits(run)}


def test_losses_and_final_state_are_those_that_are_kept(tmp_path: Path) -> None:
    kept = json.loads(GOLDEN.read_text())
    found = numbers(tmp_path)
    assert len(found["losses"]) == 70
    np.testing.assert_allclose(found["losses"], kept["losses"], rtol=1e-6)
    assert found["sha256_of_state"] == kept["sha256_of_state"], "the losses are equal, the state is not"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = numbers(Path(scratch))
    reasons = json.loads(GOLDEN.read_text())["reasons"] if GOLDEN.exists() else []
    GOLDEN.write_text(json.dumps({"reasons": [*reasons, sys.argv[1]], **found}, indent=1) + os.linesep)
