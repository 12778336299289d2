"""A commit every 50 steps while all of VGG16 is fine-tuned: how much of the run the training thread spends on it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.comparison import Comparison

STEPS, EVERY = 200, 50


def comparisons() -> Iterator[Comparison]:
    from benchmarks.trainer import Trainer, advance, config
    from tl_dist.parallel.single import SingleDevice
    from tl_dist.runs.checkpoint import Checkpointer
    from tl_dist.runs.directory import RunDir
    from tl_dist.worker.metrics import Metrics
    from tl_dist.worker.rank_zero import RankZero

    directory = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    run = RunDir(directory)
    run.checkpoints.mkdir()
    cfg = config()
    trainer = Trainer(cfg, SingleDevice(cfg), "float32")
    metrics = Metrics(
        run, from_step=0, total_steps=STEPS, steps_per_epoch=32, epochs=1.0, num_workers=1,
        class_names=[str(k) for k in range(10)], tensorboard=False,
    )  # fmt: skip
    checkpointer = Checkpointer(run, keep=2, owned=lambda: True)
    reports = trainer.reports(10)
    advance(reports, 10)  # compile
    try:
        with RankZero(run, metrics, checkpointer, trainer.state, meta={}, commit_every_s=1e9) as recorder:
            start = time.perf_counter()
            while trainer.state.step < STEPS + 10:
                recorder.report(next(reports))
                if trainer.state.step % EVERY == 0:
                    recorder.commit()
            wall = time.perf_counter() - start
            blocked, num_bytes = recorder.blocked_s, sum(a.nbytes for a in trainer.state.arrays().values())
    finally:
        shutil.rmtree(directory)
    yield Comparison(
        "checkpoint_stall", "s", blocked, "whole run", wall, bar=0.01, at_most=True,
        note=f"{STEPS // EVERY} commits of {num_bytes / 1e6:.0f} MB",
    )  # fmt: skip
