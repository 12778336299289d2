"""A run directory of an earlier tl_dist opens, resumes and is evaluated: one that was stopped at step 5 of 8.

`python -m tests.end_to_end.test_old_runs` makes the archive again, by the code at hand: only before 0.1.0 is released.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.end_to_end.harness import TL_DIST, Workspace, records, wait_for
from tl_dist.runs.directory import RunDir

ARCHIVE = Path(__file__).parents[1] / "data" / "run_of_0.1.0.tar.xz"
PLACE = "/home/me"
"""where the run was made"""

CONFIG = """\
steps: 8
global_batch: 16
precision: float32
data: {name: digits, image_size: 16}
model: {backbone: tiny, weights: tiny.safetensors, train_from: head}
optimizer: {name: sgd, learning_rate: 0.05, momentum: 0.9}
checkpoint: {every_steps: 4, keep: 1}
report: {tensorboard: false, every_steps: 1}
safety: {max_restarts: 0}
runtime: {threads: 1, prefix_cache: "off"}
"""


def write_weights(path: Path) -> None:
    """Those on which the run's head was trained: by integers and powers of two, the same bits on every machine."""
    arrays = {}
    for name, inputs, filters in (("block1", 3, 16), ("block2", 16, 32), ("block3", 32, 64)):
        numbers = np.arange(9 * inputs * filters, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**16)
        kernel = (numbers.astype(np.float32) - 2**15) / 2**17
        arrays[f"{name}_conv1/kernel"] = kernel.reshape(3, 3, inputs, filters)
        arrays[f"{name}_conv1/bias"] = np.zeros(filters, np.float32)
    save_file(arrays, path)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory / "runs", filter="data")
    for name in ("config.yaml", "run.json"):
        file = directory / "runs" / "old" / name
        file.write_text(file.read_text().replace(PLACE, str(directory)))
    (directory / "old.yaml").write_text(CONFIG)
    write_weights(directory / "tiny.safetensors")
    return directory


def tl_dist(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        [TL_DIST, *arguments], cwd=directory, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed_evaluated_and_resumed(directory: Path) -> None:
    run = RunDir(directory / "runs" / "old")
    assert "old" in tl_dist(directory, "runs")
    tl_dist(directory, "eval", "runs/old", "--split", "test")
    early = json.loads((run.path / "evaluations" / "test.json").read_text())
    assert early["step"] == 5
    tl_dist(directory, "train", "old.yaml")
    assert [record["step"] for record in records(run, "resumed")] == [5]
    assert [record["step"] for record in records(run, "train")] == list(range(1, 9))
    (evaluated,) = [record for record in records(run, "evaluation") if record["split"] == "test"]
    assert evaluated["step"] == 8
    assert evaluated["loss"] != early["loss"]


def make_archive() -> None:
    """Train the run up to step 5, stop it as a scheduler does, and pack its directory."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_weights(directory / "tiny.safetensors")
        workspace = Workspace(directory, CONFIG)
        # The worker reads the request after the step in which it was stopped.
        process, worker = workspace.start_up_to("old", 4, rank=0)
        process.terminate()
        wait_for(workspace.run("old").stop_requested, "the request to stop")
        os.kill(worker, signal.SIGCONT)
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 75, printed
        run = workspace.run("old")
        for file in (run.config_file, run.identity_file, run.attempts / "0001.json"):
            text = file.read_text().replace(str(directory), PLACE)
            file.write_text(text.replace(sys.prefix, f"{PLACE}/.venv"))
        run.rank_log(0).write_text("")

        def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = "root"
            return entry

        with tarfile.open(ARCHIVE, "w:xz") as archive:
            archive.add(run.path, "old", filter=anonymous)


if __name__ == "__main__":
    make_archive()
