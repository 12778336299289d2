"""Whatever interrupts a run, the same command goes on, and the result is that of a run that was left alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.harness import (
    NUM_STEPS,
    ONE_WORKER,
    Workspace,
    bits,
    losses,
    newest,
    records,
    step_of,
    wait_for,
)
from tl_dist.refusal import ExitCode
from tl_dist.run import steps_in


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("interruptions"))
    made.train("clean")
    return made


def worker_pid(workspace: Workspace, name: str, rank: int) -> int:
    return workspace.run(name).read_beats()[rank].pid


@pytest.mark.parametrize("rank", [0, 1])
def test_kill_9_of_a_worker_ends_with_the_same_bits(workspace: Workspace, rank: int) -> None:
    name, run = f"kill-{rank}", workspace.run(f"kill-{rank}")
    process = workspace.start(workspace.argv(name))
    at = random.randrange(45, NUM_STEPS - 100)
    wait_for(lambda: step_of(run) >= at, f"step {at}")
    os.kill(worker_pid(workspace, name, rank), signal.SIGKILL)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert f"rank {rank}" in said  # the first failing rank is named
    assert bits(run) == bits(workspace.run("clean")), f"killed rank {rank} after step {at}"


def test_kill_9_of_the_supervisor_ends_its_workers_and_the_same_command_goes_on(workspace: Workspace) -> None:
    run = workspace.run("orphans")
    process = workspace.start(workspace.argv("orphans"))
    wait_for(lambda: step_of(run) >= 60, "step 60")
    pids = [worker_pid(workspace, "orphans", rank) for rank in (0, 1)]
    process.kill()
    process.communicate()
    wait_for(lambda: not any(alive(pid) for pid in pids), "the end of both workers", timeout_s=10)
    assert "resumes from step" in workspace.train("orphans")
    assert bits(run) == bits(workspace.run("clean"))


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has reaped yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_stop_saves_at_a_step_boundary_and_loses_nothing(workspace: Workspace) -> None:
    run = workspace.run("stopped")
    workspace.stop("stopped", 50, signal.SIGINT)
    assert steps_in(run.checkpoints)[0][0] == step_of(run)
    workspace.train("stopped")
    assert bits(run) == bits(workspace.run("clean"))


WAYS = {
    "single": ONE_WORKER,
    "mirrored-2": ("--strategy=mirrored", "-n2"),
    "horovod-3": ("--strategy=horovod", "-n3"),
}


@pytest.fixture(scope="module")
def half_done(workspace: Workspace) -> Path:
    """A run of two Horovod workers that was asked to stop on the way."""
    workspace.stop("half-done", 50, signal.SIGTERM)
    return workspace.run("half-done").path


@pytest.mark.parametrize("way", list(WAYS))
def test_a_run_goes_on_with_another_strategy_or_worker_count(
    workspace: Workspace, half_done: Path, way: str
) -> None:
    run, resumed_at = workspace.run(f"moved-{way}"), step_of(workspace.run("half-done"))
    shutil.copytree(half_done, run.path)
    workspace.train(run.name, *WAYS[way])
    found, expected = losses(run), losses(workspace.run("clean"))
    assert found.keys() == expected.keys()
    # After hundreds of steps rounding has grown to something: parity is a statement about 20.
    compared = [step for step in found if step <= resumed_at + 20]
    assert len(compared) >= 70
    np.testing.assert_allclose(
        [found[step] for step in compared], [expected[step] for step in compared], rtol=1e-5
    )
    assert len({record["workers"] for record in records(run, "train")}) == (1 if way == "mirrored-2" else 2)


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_newest_checkpoint_is_passed_over_by_name(workspace: Workspace, damage: str) -> None:
    name, run = f"damaged-{damage}", workspace.run(f"damaged-{damage}")
    process = workspace.start(workspace.argv(name))
    wait_for(lambda: step_of(run) >= 100, "step 100")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    (last, _), (before, _) = steps_in(run.checkpoints)[:2]
    content = bytearray(newest(run).read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        del content[-1]
    newest(run).write_bytes(content)
    said = workspace.train(name)
    assert f"step-{last:08d} is not valid" in said
    assert f"going back to step-{before:08d}" in said
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


def test_a_second_start_of_a_running_run_names_its_owner(workspace: Workspace) -> None:
    run = workspace.run("twice")
    process = workspace.start(workspace.argv("twice"))
    wait_for(lambda: step_of(run) >= 5, "step 5")
    said = workspace.train("twice", expect=ExitCode.CANNOT_CREATE)
    assert "in use" in said and f"pid {worker_pid(workspace, 'twice', 0)}" in said and "Fix:" in said
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
