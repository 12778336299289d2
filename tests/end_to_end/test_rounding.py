"""Two workers differ from one as rounding makes one differ from itself, with other threads: little, then by per cents.

What is measured on more seeds and in a picture is in docs/pages/how-a-run-works.md, by benchmarks/rounding.py.
"""

import numpy as np
import pytest

from tests.end_to_end.harness import Workspace, losses, records

CONFIG = """\
global_batch: 32
epochs: 5
precision: float32
data: {name: digits, image_size: 16, validation_fraction: 0.1}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: adam, learning_rate: 3e-3}
report: {every_steps: 1, tensorboard: false}
runtime: {threads: 1}
"""
EARLY = 20


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("rounding"), CONFIG)
    made.train("one")
    made.train("threads", "runtime.threads=2")
    made.train("two", "--strategy=collective", "-n2")
    return made


def apart(workspace: Workspace, name: str) -> np.ndarray:
    """By how much of a loss a run differs from one worker with one thread, after each step the most so far."""
    one, other = (np.array([*losses(workspace.run(run)).values()]) for run in ("one", name))
    most: np.ndarray = np.maximum.accumulate(np.abs(other / one - 1))
    return most


@pytest.mark.parametrize("name", ["threads", "two"])
def test_the_first_steps_differ_by_rounding(workspace: Workspace, name: str) -> None:
    """Ten times what the tests of each strategy allow: Adam's first steps divide by what is nearly 0."""
    assert apart(workspace, name)[EARLY - 1] < 1e-4


def test_two_workers_end_as_far_from_one_as_other_threads_do(workspace: Workspace) -> None:
    """Whether threads change a bit at all is up to the kernels; where they do not, there is one figure less."""
    ends = {name: apart(workspace, name)[-1] for name in ("threads", "two")}
    assert 1e-4 < ends["two"] < 1
    if ends["threads"] > 0:
        assert 1 / 100 < ends["two"] / ends["threads"] < 100


def test_accuracies_are_alike(workspace: Workspace) -> None:
    """Within three deviations of what seeds move it by: 4 of 449 images each."""
    accuracy = [
        [one["num_correct"] for one in records(workspace.run(name), "evaluation") if one["split"] == "test"][-1]
        for name in ("one", "threads", "two")
    ]
    assert np.ptp(accuracy) <= 30 and min(accuracy) > 380
