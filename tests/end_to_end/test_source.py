"""`source:` carries a backbone from one task to another: the same bits at step 0, pinned, resumable in either."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.end_to_end.harness import Workspace, bits, step_of, wait_for
from tl_dist.runs.directory import steps_in

TRIAL = """\
global_batch: 8
precision: float32
steps: 60
data: {name: synthetic, num_examples: 40, num_classes: 5, image_size: 16}
model: {backbone: tiny, weights: random, train_from: block2}
optimizer: {name: adam, learning_rate: 0.003}
source:
  data: {name: digits, image_size: 16}
  steps: 60
  optimizer: {name: adam, learning_rate: 0.003, ema: 0.9}
checkpoint: {every_steps: 20}
report: {tensorboard: false, every_steps: 1}
runtime: {threads: 1}
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("source"), TRIAL)
    said = made.train("whole")
    lines = [line for line in said.splitlines() if ": loss train " in line]
    assert [line.split()[0] for line in lines] == ["source", "target"], said
    assert all(", test " in line for line in lines)
    return made


def state(workspace: Workspace, name: str, step: int) -> dict[str, np.ndarray]:
    checkpoints: dict[int, Path] = dict(steps_in(workspace.run(name).checkpoints))
    return load_file(checkpoints[step] / "state.safetensors")


def test_the_backbone_starts_at_the_averaged_weights_of_the_source(workspace: Workspace) -> None:
    source = state(workspace, "whole-source", 60)
    workspace.train_here("still", "optimizer.learning_rate=1e-30", "source.name=whole-source", "steps=1")
    target = state(workspace, "still", 1)
    carried = {path for path in target if path.startswith("backbone/")}
    assert {path.split("/")[1] for path in carried} == {"block2_conv1", "block3_conv1"}
    for path in carried:
        np.testing.assert_array_equal(target[path], source[f"optimizer/ema/{path}"])
        assert not np.array_equal(target[path], source[path])
    assert target["head/logits/kernel"].shape[1] == 5 != source["head/logits/kernel"].shape[1]


@pytest.mark.parametrize("part", ["target", pytest.param("source", marks=pytest.mark.full)])
def test_an_interruption_in_either_changes_no_bit(workspace: Workspace, part: str) -> None:
    name = f"stopped-in-{part}"
    process = workspace.start(workspace.argv(name), TL_FAILPOINT="train.chunk_done:5=stop", TL_ALLOW_FAILPOINTS="1")
    worker = workspace.stopped(process, f"{name}-source", 0)
    if part == "target":
        os.kill(worker, signal.SIGCONT)
        worker = workspace.stopped(process, name, 0)
    stopped = workspace.run(f"{name}-source" if part == "source" else name)
    process.terminate()
    wait_for(stopped.stop_requested, "the request to stop")
    os.kill(worker, signal.SIGCONT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert stopped.done is None and 5 <= step_of(stopped) < 60
    workspace.train(name)
    assert bits(workspace.run(name)) == bits(workspace.run("whole"))


def test_an_earlier_run_is_pinned_by_digest_and_by_backbone(workspace: Workspace) -> None:
    task = TRIAL[TRIAL.index("source:") : TRIAL.index("checkpoint:")]
    from_run = TRIAL.replace(task, "source: {run: runs/whole-source}\n")
    (workspace.directory / "trial.yaml").write_text(from_run)
    workspace.train("later")
    assert bits(workspace.run("later")) == bits(workspace.run("whole"))
    identity = json.loads(workspace.run("later").identity_file.read_text())
    assert identity["source_sha256"] != identity["frozen_sha256"]
    workspace.run("later").done_file.unlink()
    said = workspace.train("later", "source.run=runs/whole", expect=78)
    assert "source_sha256" in said
    said = workspace.train("x", "source.run=runs/whole", "model.backbone=vgg16", "data.image_size=32", expect=64)
    assert said.count("\n") == 1 and "trained tiny, but model.backbone is vgg16" in said, said
