"""`tl-dist features extract`: all workers compute what a config needs; its runs then read no image."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.harness import TL_DIST, Workspace, records

CONFIG = """\
steps: 4
precision: float32
data: {name: synthetic, num_examples: 96, num_classes: 3, image_size: 16, augment: [flip]}
model: {backbone: tiny, weights: random, train_from: block3}
optimizer: {name: sgd, learning_rate: 0.01}
report: {tensorboard: false}
runtime: {prefix_cache: "on", threads: 1}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, CONFIG)


def features(workspace: Workspace, *arguments: str) -> str:
    process = workspace.start([TL_DIST, "features", *arguments], COLUMNS="150")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def test_what_two_workers_extract_serves_every_run_until_nothing_refers_to_it(workspace: Workspace) -> None:
    runs = workspace.directory / "runs"
    said = features(workspace, "extract", "trial.yaml", "--strategy", "horovod", "-n", "2")
    rows = {96 * 2, 24}  # the training split in two views of each, the test split as it is
    assert "tiny" in said and all(f" {number} " in said for number in rows)
    extracted = records(workspace.run("trial"), "extraction")
    assert {record["total"] for record in extracted} == rows
    sets = list((runs / "features").iterdir())
    shards = {path: sum(len(np.load(file)) for file in path.glob("shard-000[01].npy")) for path in sets}
    assert set(shards.values()) == rows

    workspace.train_here("other", "optimizer.learning_rate=0.02")
    assert not records(workspace.run("other"), "extraction")
    assert workspace.run("other").done is not None

    shutil.rmtree(runs / "trial")
    assert "0 removed" in features(workspace, "prune", "--unreferenced")
    shutil.rmtree(runs / "other")
    assert "spared" in features(workspace, "prune", "--unreferenced")  # a run may be about to read them
    for manifest in (runs / "features").glob("*/manifest.json"):
        os.utime(manifest, (time.time() - 2 * 3600,) * 2)
    assert "2 removed" in features(workspace, "prune", "--unreferenced")
    assert not list((runs / "features").iterdir())
