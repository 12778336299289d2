"""Whatever interrupts a run, the same command goes on, and the result is that of a run that was left alone."""

import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.harness import (
    NUM_STEPS,
    TL_DIST,
    Workspace,
    alive,
    bits,
    losses,
    records,
    step_of,
    wait_for,
)
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import steps_in

KILLS = [(rank, random.Random(rank).randrange(26, NUM_STEPS - 4)) for rank in (0, 1)]
"""which worker, and in the middle of which step"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("interruptions"))
    made.train("clean")
    return made


@pytest.mark.parametrize(("rank", "step"), KILLS, ids=[f"rank{rank}-step{step}" for rank, step in KILLS])
def test_kill_9_of_a_worker_ends_with_the_same_bits(workspace: Workspace, rank: int, step: int) -> None:
    """The other worker stops in front of the step, so that this one waits for it in the middle."""
    run = workspace.run(f"kill-{rank}")
    process, other = workspace.start_up_to(run.name, step, rank=1 - rank, program=TL_DIST)
    os.kill(workspace.worker_pid(run.name, rank), signal.SIGKILL)
    os.kill(other, signal.SIGCONT)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert f"rank {rank}" in said  # the first failing rank is named
    assert bits(run) == bits(workspace.run("clean"))


def test_a_running_run_names_its_owner_and_kill_9_of_its_supervisor_ends_its_workers(
    workspace: Workspace,
) -> None:
    """By processes that are all their parents' children."""
    run = workspace.run("orphans")
    process, _ = workspace.start_up_to("orphans", 10, rank=1)
    pids = [workspace.worker_pid("orphans", rank) for rank in (0, 1)]
    said = workspace.train("orphans", expect=ExitCode.CANNOT_CREATE)
    assert "in use" in said and f"pid {pids[0]}" in said and "Fix:" in said
    process.kill()
    process.communicate()
    wait_for(lambda: not any(alive(pid) for pid in pids), "the end of both workers", timeout_s=10)
    assert "resumes from step" in workspace.train("orphans")
    assert bits(run) == bits(workspace.run("clean"))


WAYS = {
    "single": (),
    "mirrored-2": ("--strategy=mirrored", "-n2"),
    "horovod-3": ("--strategy=horovod", "-n3"),
    "collective-3": ("--strategy=collective", "-n3"),
}


@pytest.fixture(scope="module")
def half_done(workspace: Workspace) -> Path:
    """A run of two Horovod workers that was asked to stop on the way."""
    process, worker = workspace.start_up_to("half-done", 20, rank=1, program=TL_DIST)
    process.send_signal(signal.SIGINT)
    wait_for(workspace.run("half-done").stop_requested, "the request to stop")
    os.kill(worker, signal.SIGCONT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == ExitCode.REQUEUE, said
    return workspace.run("half-done").path


def test_a_stop_saves_at_a_step_boundary_and_loses_nothing(workspace: Workspace, half_done: Path) -> None:
    run = workspace.run("stopped")
    shutil.copytree(half_done, run.path)
    assert 20 <= steps_in(run.checkpoints)[0][0] == step_of(run) < NUM_STEPS
    workspace.train("stopped")
    assert bits(run) == bits(workspace.run("clean"))


@pytest.mark.parametrize(
    "way", ["single", "mirrored-2", "horovod-3", pytest.param("collective-3", marks=pytest.mark.full)]
)
def test_a_run_goes_on_with_another_strategy_or_worker_count(workspace: Workspace, half_done: Path, way: str) -> None:
    run, resumed_at = workspace.run(f"moved-{way}"), step_of(workspace.run("half-done"))
    shutil.copytree(half_done, run.path)
    if way == "single":
        workspace.train_here(run.name)
    else:
        workspace.train(run.name, *WAYS[way])
    found, expected = losses(run), losses(workspace.run("clean"))
    assert found.keys() == expected.keys()
    # Rounding grows: parity is a statement about 20 steps.
    compared = [step for step in found if step <= resumed_at + 20]
    assert len(compared) >= 36
    np.testing.assert_allclose([found[step] for step in compared], [expected[step] for step in compared], rtol=1e-5)
    assert len({record["workers"] for record in records(run, "train")}) == (1 if way == "mirrored-2" else 2)


def test_damaged_checkpoints_are_passed_over_by_name(workspace: Workspace, half_done: Path) -> None:
    """One with a bit that is flipped, the one before cut off by a byte."""
    run = workspace.run("damaged")
    shutil.copytree(half_done, run.path)
    (last, flipped), (before, cut), (good, _) = steps_in(run.checkpoints)[:3]
    content = bytearray((flipped / "state.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (flipped / "state.safetensors").write_bytes(content)
    os.truncate(cut / "state.safetensors", len(content) - 1)
    said = workspace.train(run.name)
    for step in (last, before):
        assert f"step-{step:08d} is not valid" in said
    assert f"going back to step-{good:08d}" in said
    assert bits(run) == bits(workspace.run("clean"))


def test_repeating_the_command_of_a_finished_run_shows_it_again(workspace: Workspace) -> None:
    before = bits(workspace.run("clean"))
    said = workspace.train("clean")
    assert "this run is done" in said
    assert "test accuracy" in said
    assert bits(workspace.run("clean")) == before


def test_another_trajectory_is_refused_with_the_difference(workspace: Workspace) -> None:
    said = workspace.train("clean", "optimizer.learning_rate=0.5", expect=ExitCode.UNSAFE)
    assert "optimizer.learning_rate: 0.01 -> 0.5" in said
    assert said.strip().splitlines()[-1].count("Fix:") == 1
    assert "Traceback" not in said
