"""A tracking server that does not answer neither stops nor changes a run; workers of a launcher are one run there."""

import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.end_to_end.harness import (
    BIN,
    CONFIG,
    INSTALLED,
    ONE_WORKER,
    TL_DIST,
    Workspace,
    losses,
    step_of,
    wait_for,
)
from tests.unit.tools.mlflow_server import mlflow_server


@pytest.mark.full
def test_a_server_that_hangs_costs_a_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = Workspace(tmp_path, CONFIG)
    few = (*ONE_WORKER, "steps=20", "checkpoint.every_steps=10")
    with mlflow_server() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        server.hangs = True
        process = space.start(space.argv("tracked", *few, "report.track=[mlflow]"))
        said, _ = process.communicate(timeout=240)
        done = time.time() - space.run("tracked").done_file.stat().st_mtime
        assert process.returncode == 0, said
        assert server.requests and not server.runs  # it was asked, and did not answer
        assert "not all of it has been sent to mlflow: tl-dist sync" in said
        assert done < 60  # 15 s, on an idle machine
        server.hangs = False
        server.released.set()
        synced = subprocess.run(
            [TL_DIST, "sync", str(space.run("tracked").path)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert synced.returncode == 0, synced.stderr
        sent = {step: float(value) for name, step, value, _ in server.metrics if name == "train/loss"}
        assert [run["info"]["status"] for run in server.runs] == ["FINISHED"]
    assert sent == losses(space.run("tracked"))
    assert sent == pytest.approx(losses(space.train_here("alone", *few)), rel=1e-6)  # by other threads


@pytest.mark.parametrize("after_a_kill", [False, pytest.param(True, marks=pytest.mark.full)])
def test_workers_of_a_launcher_are_one_run_in_each_tracker(
    after_a_kill: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process of horovodrun is the same command: rank 0 alone sends, and a restart nothing twice."""
    space = Workspace(tmp_path, CONFIG)
    trackers = "mlflow,wandb" if after_a_kill else "mlflow"
    few = ("steps=20", "checkpoint.every_steps=5", f"report.track=[{trackers}]")
    launcher = [str(BIN / "horovodrun"), "-np", "2", "--gloo"]
    run = space.run("launched")
    with mlflow_server() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        monkeypatch.setenv("WANDB_MODE", "offline")
        if after_a_kill:
            failpoint = {"TL_FAILPOINT": "train.chunk_done@0:12=kill", "TL_ALLOW_FAILPOINTS": "1"}
            argv = space.argv("launched", *few, launcher=launcher, program=INSTALLED)
            killed = space.start(argv, **failpoint)
            said, _ = killed.communicate(timeout=240)
            assert killed.returncode != 0 and 10 < step_of(run) < 20, said
            wait_for(lambda: server.runs, "the run that rank 0 has begun there")
        space.train("launched", *few, launcher=launcher)
        # Nothing waits for the process beside rank 0: it may be at it, and it may have given up.
        argv = [TL_DIST, "sync", str(run.path)]
        wait_for(lambda: subprocess.run(argv, timeout=240).returncode == 0, "the copy", timeout_s=240)
        sent = Counter(step for name, step, _, _ in server.metrics if name == "train/loss")
        assert [one["info"]["status"] for one in server.runs] == ["FINISHED"]
    assert sent == Counter(losses(run).keys()) and set(sent) == set(range(1, 21))
    assert len(list((run.path / "track" / "wandb").glob("offline-run-*"))) == after_a_kill
