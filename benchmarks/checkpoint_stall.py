"""A checkpoint every 50 steps while all of VGG16 is fine-tuned: how much of the run the training thread spends."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from benchmarks.comparison import Comparison

STEPS, EVERY = 200, 50


def comparisons() -> Iterator[Comparison]:
    from benchmarks.trainer import config, trained
    from tl_dist.config import CheckpointConfig, ReportConfig

    cfg = config().model_copy(
        update={
            "steps": STEPS,
            "precision": "float32",
            "checkpoint": CheckpointConfig(every_steps=EVERY, keep=2),
            "report": ReportConfig(every_steps=10, tensorboard=False),
        }
    )
    directory = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    try:
        run = trained(cfg, directory)
        blocked = json.loads((run.path / "DONE").read_text())["checkpoint_blocked_s"]
        num_bytes = max(file.stat().st_size for file in run.path.glob("checkpoints/*/state.safetensors"))
        # Without the first report: it is of the step that compiled.
        reports = pairwise(run.history())
        stepping = sum(after["step_s"] * (after["step"] - before["step"]) for before, after in reports)
    finally:
        shutil.rmtree(directory)
    yield Comparison(
        "checkpoint_stall", "s", blocked, "whole run", stepping + blocked, bar=0.01, at_most=True,
        note=f"{STEPS // EVERY} checkpoints of {num_bytes / 1e6:.0f} MB",
    )  # fmt: skip
