"""A run in stages: each moves its own variables, the optimizer's state goes on, an interruption changes no bit."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.end_to_end.harness import ONE_WORKER, Workspace, bits, losses, records
from tl_dist.runs.directory import steps_in

# LP-FT with a stage between; every method of the optimizer at once.
STAGES = (
    "steps=null",
    "model.train_from=head",
    "data.name=synthetic",
    "data.num_examples=64",
    "data.augment=[flip]",
    "data.validation_fraction=0.25",
    "evaluation.every_epochs=1",
    "optimizer.name=adam",
    "optimizer.learning_rate=0.003",
    "optimizer.head_learning_rate=0.01",
    "optimizer.layer_decay=0.7",
    "optimizer.l2_sp=0.1",
    "optimizer.head_weight_decay=0.01",
    "optimizer.ema=0.9",
    "checkpoint.every_steps=1",
    "checkpoint.keep=30",
    "stages=[{train_from: head, steps: 6}, {train_from: block3, steps: 6, schedule: {name: cosine}}, "
    "{train_from: all, steps: 8, learning_rate: 0.001}]",
)
ENDS = (6, 12, 20)
TRAINED = (
    {"head/logits"},
    {"head/logits", "backbone/block3_conv1"},
    {"head/logits", "backbone/block1_conv1", "backbone/block2_conv1", "backbone/block3_conv1"},
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("stages"))
    made.train("whole", *STAGES, *ONE_WORKER)
    return made


def state(workspace: Workspace, name: str, step: int) -> dict[str, np.ndarray]:
    checkpoints: dict[int, Path] = dict(steps_in(workspace.run(name).checkpoints))
    return load_file(checkpoints[step] / "state.safetensors")


def layers(paths: set[str]) -> set[str]:
    return {path.rpartition("/")[0] for path in paths}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_stage_moves_its_variables_their_slots_and_averages_and_nothing_else(
    workspace: Workspace, number: int
) -> None:
    before = state(workspace, "whole", ENDS[number - 1] if number else 1)
    after = state(workspace, "whole", ENDS[number])
    moved = {path for path in after if not np.array_equal(after[path], before[path])}
    assert layers({path for path in moved if path.startswith(("head", "backbone"))}) == TRAINED[number]
    for slot in ("m", "v", "ema"):
        own = {path.removeprefix(f"optimizer/{slot}/") for path in moved if path.startswith(f"optimizer/{slot}/")}
        assert layers(own) == TRAINED[number]
    counters = {path for path in moved if path.startswith("optimizer/updates")}
    assert counters == {"optimizer/updates" + (f"/{number}" if number else "")}


def test_what_is_newly_trained_starts_at_zero_and_takes_the_step_of_a_first_update(
    workspace: Workspace,
) -> None:
    """Adam's first step is the rate in size, whatever the gradient: a count carried over would shrink it."""
    path = "backbone/block3_conv1/kernel"
    before, after = state(workspace, "whole", 6), state(workspace, "whole", 7)
    assert not before[f"optimizer/m/{path}"].any() and before["optimizer/m/head/logits/kernel"].any()
    step = np.abs(after[path] - before[path])
    assert np.median(step[step > 0]) == pytest.approx(0.003 * 0.7, rel=1e-2)


def test_a_stage_says_how_slowly_its_lowest_block_learns(workspace: Workspace) -> None:
    notes = [record["text"] for record in records(workspace.run("whole"), "note")]
    assert [text for text in notes if text.startswith("layer_decay")] == [
        "layer_decay 0.7 over 1 block: block3_conv1 learns at 0.0021, the head at 0.01",
        "layer_decay 0.7 over 3 blocks: block1_conv1 learns at 0.00034, the head at 0.001",
    ]


def test_killed_in_two_stages_the_run_ends_with_the_same_bits(workspace: Workspace) -> None:
    process = workspace.start(
        workspace.argv("killed", *STAGES, *ONE_WORKER),
        TL_FAILPOINT="train.chunk_done:9=kill",
        TL_ALLOW_FAILPOINTS="1",
    )
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    resumed = {record["step"] for record in records(workspace.run("killed"), "resumed")}
    assert len(resumed) >= 2, said
    assert bits(workspace.run("killed")) == bits(workspace.run("whole"))


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param("mirrored", ("--strategy=mirrored", "-n2"), marks=pytest.mark.full),
        ("horovod", ("--strategy=horovod", "-n2")),
        ("cached", ()),
    ],
)
def test_two_workers_and_a_cached_prefix_have_one_loss_curve(
    workspace: Workspace, name: str, way: tuple[str, ...]
) -> None:
    if way:
        workspace.train(name, *STAGES, *way)
    else:
        workspace.train_here(name, *STAGES, "runtime.prefix_cache=on")
    found, expected = losses(workspace.run(name)), losses(workspace.run("whole"))
    assert found.keys() == expected.keys() and len(found) == ENDS[-1]
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
    validation = [[record["loss"] for record in records(workspace.run(run), "evaluation")] for run in (name, "whole")]
    np.testing.assert_allclose(validation[0], validation[1], rtol=1e-5)
