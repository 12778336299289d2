"""With TensorFlow's collectives, a worker that dies or freezes costs no bit; Horovod resumes from their checkpoint."""

import os
import random
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.harness import (
    CONFIG,
    NUM_STEPS,
    TL_DIST,
    Workspace,
    bits,
    losses,
    step_of,
)
from tl_dist.refusal import ExitCode

STEP = random.Random(76).randrange(26, NUM_STEPS - 4)
QUIET_S = "6"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    config = CONFIG.replace("strategy: horovod", "strategy: collective")
    made = Workspace(tmp_path_factory.mktemp("collective"), config)
    made.train("clean")
    return made


@pytest.mark.parametrize(
    "rank", [0, pytest.param(1, marks=pytest.mark.full)], ids=[f"rank{rank}-step{STEP}" for rank in (0, 1)]
)
def test_kill_9_of_a_worker_ends_with_the_same_bits(workspace: Workspace, rank: int) -> None:
    """Rank 0 is also the one to which TensorFlow's other servers report."""
    run = workspace.run(f"kill-{rank}")
    process, other = workspace.start_up_to(run.name, STEP, rank=1 - rank, program=TL_DIST)
    os.kill(workspace.worker_pid(run.name, rank), signal.SIGKILL)
    os.kill(other, signal.SIGCONT)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert f"rank {rank}" in said
    assert bits(run) == bits(workspace.run("clean"))


def guard_process_of(worker: int) -> int:
    """The pid of the process that guards a worker's port."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == worker and b"port_guard_process" in (process / "cmdline").read_bytes():
                return int(process.name)
    raise AssertionError(f"no port guard process of {worker}")


def test_the_end_of_a_port_guard_process_ends_its_worker_and_costs_no_bit(workspace: Workspace) -> None:
    """The process through which all of a worker's connections go: without it the port stays shut."""
    run = workspace.run("no-port-guard")
    process, other = workspace.start_up_to(run.name, STEP, rank=1, program=TL_DIST)
    guard = guard_process_of(workspace.worker_pid(run.name, 0))
    os.kill(guard, signal.SIGKILL)
    os.kill(other, signal.SIGCONT)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "lost a peer" in said or "another worker" in said
    assert bits(run) == bits(workspace.run("clean"))


def test_a_frozen_worker_is_noticed_named_and_costs_no_bit(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before its heartbeats would be missed: `hang_s` is two minutes."""
    monkeypatch.setenv("HOROVOD_GLOO_TIMEOUT_SECONDS", QUIET_S)
    run = workspace.run("frozen")
    process, _ = workspace.start_up_to(run.name, STEP, rank=1, program=TL_DIST)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert "rank 1" in said and "did not react when rank 0 lost a peer" in said
    assert bits(run) == bits(workspace.run("clean"))


def test_a_stop_is_heeded_and_horovod_goes_on_from_there(workspace: Workspace) -> None:
    """The signal goes to a worker in the middle of a step, where TensorFlow's server would keep it for itself."""
    run = workspace.run("back")
    process, worker = workspace.start_up_to(run.name, 20, rank=1, program=TL_DIST)
    os.kill(workspace.worker_pid(run.name, 0), signal.SIGTERM)
    os.kill(worker, signal.SIGCONT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == ExitCode.REQUEUE, said
    stopped = step_of(run)
    assert 20 <= stopped < NUM_STEPS
    shutil.copytree(run.path, workspace.run("again").path)
    workspace.train("again")
    assert bits(workspace.run("again")) == bits(workspace.run("clean"))
    workspace.train("back", "--strategy=horovod")
    found, expected = losses(run), losses(workspace.run("clean"))
    assert found.keys() == expected.keys()
    # As in test_interruptions: parity is a statement about 20 steps.
    compared = [step for step in found if step <= stopped + 20]
    np.testing.assert_allclose([found[step] for step in compared], [expected[step] for step in compared], rtol=1e-5)
