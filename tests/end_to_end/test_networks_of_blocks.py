"""A ViT, a LoRA run and a Swin of ZeroModels on 3 and 4 workers: the curve of one, and no other bit after a kill."""

from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.harness import EVERY_STEP, ONE_WORKER, Workspace, bits, losses, records

REST = (
    EVERY_STEP
    + """\
global_batch: 15
steps: 10
data: {name: digits, image_size: 32, validation_fraction: 0.2}
optimizer: {name: adamw, learning_rate: 0.003, weight_decay: 0.05}
"""
)
VIT = 'model: {backbone: "tests.small_vit:SMALL_VIT", weights: random, train_from: all, pooling: both}\n'
SWIN = """\
model:
  backbone: zeromodels.models.swin:SwinModel
  arguments: {embed_dim: 16, depths: [1, 1, 1, 1], num_heads: [1, 2, 4, 8], window_size: 2, pretrain_size: 32}
  preprocessing: torch
  weights: random
  train_from: all
"""
NETWORKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "vit": (VIT, ("model.drop_path=0.5", "optimizer.layer_decay=0.8")),
    "lora": (VIT, ("source.run=runs/base", "model.train_from=block1", "model.adapt.lora=4")),
    "swin": (SWIN, ()),
}


@pytest.mark.full
@pytest.mark.parametrize("num", [3, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_curve_of_one_and_the_bits_of_a_whole_run(
    name: str, num: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, more = NETWORKS[name]
    space = Workspace(tmp_path, REST + network)
    monkeypatch.chdir(space.directory)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    if name == "lora":
        space.train("base", *ONE_WORKER)
    several = (*more, "strategy=horovod", f"workers={num}", "checkpoint.every_steps=4")
    space.train("one", *more, *ONE_WORKER)
    space.train("whole", *several)
    process = space.start(
        space.argv("killed", *several), TL_FAILPOINT="train.chunk_done:6=kill", TL_ALLOW_FAILPOINTS="1"
    )
    text, _ = process.communicate(timeout=500)
    assert process.returncode == 0 and records(space.run("killed"), "resumed"), text
    one, whole = (list(losses(space.run(of)).values()) for of in ("one", "whole"))
    np.testing.assert_allclose(whole, one, rtol=1e-5)
    assert bits(space.run("killed")) == bits(space.run("whole"))
