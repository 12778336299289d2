"""`evaluation.views` from the command line: the same mean with and without the cache, on one worker and on two."""

from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.harness import SMALL, Workspace
from tl_dist.scores import predictions

TRIAL = (
    SMALL
    + """\
global_batch: 8
data: {name: synthetic, num_examples: 60, num_classes: 3, image_size: 16, augment: [flip]}
model: {backbone: tiny, weights: random}
optimizer: {learning_rate: 0.5}
steps: 6
evaluation: {views: [dihedral]}
"""
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("views"), TRIAL)
    made.train_here("one")
    return made


def probabilities(workspace: Workspace, name: str) -> np.ndarray:
    file: Path = predictions.file_of(workspace.run(name).path, "test")
    return predictions.load(file).probabilities


def test_two_workers_on_the_cache_predict_the_same(workspace: Workspace) -> None:
    workspace.train("two", "--strategy=horovod", "-n2", "runtime.prefix_cache=on")
    np.testing.assert_allclose(probabilities(workspace, "two"), probabilities(workspace, "one"), rtol=1e-4, atol=1e-6)


def test_eval_takes_other_views_for_once(workspace: Workspace) -> None:
    in_training = probabilities(workspace, "one")
    program = workspace.argv("x")[0]
    # A mirrored square has the same eight symmetries.
    for views, same in (("", False), ("flip,dihedral", True)):
        process = workspace.start([program, "eval", "runs/one", f"--views={views}"])
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert np.allclose(probabilities(workspace, "one"), in_training, rtol=1e-4, atol=1e-6) == same
    process = workspace.start([program, "eval", "runs/one", "--views=upside"])
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 64 and said.count("\n") == 1 and "evaluation.views" in said, said
