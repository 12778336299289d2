"""Two workers whose run directory is 1 ms away start and train as if it were near: they hardly ask for it."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.end_to_end.harness import Workspace, step_of, wait_for

SLOW_STEP_S = 0.1
STEPS = range(5, 85)  # of 100


@pytest.mark.e2e
def test_training_takes_less_than_one_look_in_two_seconds(tmp_path: Path) -> None:
    shim, log = tmp_path / "far_away.so", tmp_path / "calls"
    source = Path(__file__).with_name("far_away.c")
    subprocess.run(["gcc", "-w", "-O1", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    workspace = Workspace(tmp_path)
    process = workspace.start(
        workspace.argv("far", "steps=100", "checkpoint.every_steps=100"),
        LD_PRELOAD=str(shim),
        FAR_AWAY=str(tmp_path / "runs"),
        FAR_AWAY_LOG=str(log),
        TL_FAILPOINT=f"train.chunk_done=sleep={SLOW_STEP_S}",
        TL_ALLOW_FAILPOINTS="1",
    )
    run = workspace.run("far")
    times = []
    for step in (STEPS.start, STEPS.stop):
        wait_for(lambda step=step: process.poll() is not None or step_of(run) >= step, f"step {step}")
        times.append(time.monotonic())
    pids = {beat.pid: rank for rank, beat in run.beats.read().items()}
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said

    starting: dict[int, list[str]] = {0: [], 1: []}
    training: dict[int, list[str]] = {0: [], 1: []}
    for line in log.read_text().splitlines():
        at, pid, what, path = line.split(" ", 3)
        if (rank := pids.get(int(pid))) is not None:
            phase = starting if float(at) < times[0] else training if float(at) < times[1] else {}
            phase.get(rank, []).append(f"{what} {path.removeprefix(str(run.path))}")
    began, ended = times
    assert len(starting[1]) <= 150, starting[1]
    assert len(starting[0]) <= 400, starting[0]
    assert 1 <= len(training[1]) <= 0.5 * (ended - began) + 2, training[1]  # heartbeats
    # Rank 0 looks for the stop file after each chunk of steps, of which one here takes no 2 s but 0.1.
    assert len(training[0]) <= 0.5 * (ended - began) + 3 * len(STEPS) + 20, training[0]
