"""A tracking server that does not answer neither stops nor changes a run; `tl-dist sync` sends what it did not get."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.end_to_end.harness import CONFIG, ONE_WORKER, TL_DIST, Workspace, losses
from tests.unit.tracking.mlflow_server import mlflow_server


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
