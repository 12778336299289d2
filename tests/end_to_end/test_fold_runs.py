"""The folds of `cv` share their cached features, and are the runs that they would be alone; a killed one resumes."""

import numpy as np
import pytest

from tests.end_to_end.harness import TL_DIST, Workspace, bits, records
from tl_dist.refusal import ExitCode

CONFIG = """\
global_batch: 8
steps: 4
precision: float32
data: {name: synthetic, num_examples: 64, num_classes: 3, image_size: 16, augment: [flip]}
model: {backbone: tiny, weights: random, train_from: block3, dropout: 0.2}
optimizer: {name: adam, learning_rate: 0.003}
report: {tensorboard: false, every_steps: 1}
runtime: {threads: 1, prefix_cache: "on"}
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("fold-runs"))
    (made.directory / "trial.yaml").write_text(CONFIG)
    return made


def cv(workspace: Workspace, name: str, *more: str, expect: int = 0, **environment: str) -> str:
    argv = [TL_DIST, "cv", "trial.yaml", f"name={name}", "--folds", "2", "--seeds", "1", *more]
    process = workspace.start(argv, **environment)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == expect, said
    return said


def attempts(workspace: Workspace, name: str) -> int:
    return len(list(workspace.run(name).attempts.glob("*.json")))


def test_folds_share_their_features_and_a_killed_one_resumes(workspace: Workspace) -> None:
    cv(
        workspace, "folds", "checkpoint.every_steps=1", "safety.max_restarts=0", expect=ExitCode.PEER_LOST,
        TL_FAILPOINT="train.chunk_done:3=kill", TL_ALLOW_FAILPOINTS="1",
    )  # fmt: skip
    assert "mean of 2 folds x 1 seeds of 64 examples" in cv(workspace, "folds")
    killed, second = (workspace.run(f"folds-cv-0-{fold}") for fold in range(2))
    assert records(killed, "resumed")
    # The pool in all its views and the official test split, once for both folds.
    sets = list((workspace.directory / "runs" / "features").iterdir())
    assert sorted(sum(len(np.load(file)) for file in path.glob("*.npy")) for path in sets) == [16, 2 * 64]
    assert records(killed, "extraction") and not records(second, "extraction")

    workspace.train("alone", "seed=0", "data.split_seed=0", "data.folds=2", "data.fold=0")
    assert bits(workspace.run("alone")) == bits(killed)

    assert cv(workspace, "folds").count("this run is done") == 2
    assert attempts(workspace, "folds-cv-0-0") == 2 and attempts(workspace, "folds-cv-0-1") == 1
