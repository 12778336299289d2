"""`tl-dist submit` trains over nodes as one worker would; an interrupted job ends with the very same weights."""

import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import tl_dist as tl
from tests.end_to_end.harness import state_of
from tests.unit.tools.mlflow_server import MlflowServer, mlflow_server
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir, steps_in
from tl_dist.tools.track.command import sync

from .slurm_cluster import ClusterError, FinishedJob, SlurmCluster

CHECKOUT = Path(__file__).parents[2]
NUM_STEPS = 40
ROUNDING = 1e-4
"""Sums in another order: 5e-6 of the loss at most was seen in these steps."""

CONFIG = f"""\
strategy: single
global_batch: 16
steps: {NUM_STEPS}
precision: float32
data:
  name: synthetic
  image_size: 32
  num_examples: 160
  num_classes: 4
  augment: [flip]
model:
  backbone: tiny
  weights: random
  train_from: all
optimizer:
  name: adam
  learning_rate: 1e-4
report:
  every_steps: 1
  tensorboard: false
checkpoint:
  every_steps: 5
runtime:
  threads: 1
"""


class Harness:
    """The command line, as a user has it: one config, one directory of runs."""

    def __init__(self, slurm: SlurmCluster, directory: Path) -> None:
        self._slurm = slurm
        self._runs = directory / "runs"
        self._config = directory / "trial.yaml"
        self._config.write_text(CONFIG)

    def train_here(self, name: str) -> RunDir:
        """Without Slurm, by this process."""
        return RunDir(tl.train(tl.load_config(self._config, f"name={name}"), runs=self._runs, here=True).path)

    def submit(self, name: str, *options: str, env: dict[str, str] | None = None) -> tuple[RunDir, str]:
        """The run and the id of its job."""
        said = self._command("submit", name, "--nodes=2", "--ntasks-per-node=1", *options, env=env)
        found = re.search(r"\bjob (\d+)\b", said)
        assert found is not None, said
        return RunDir(self._runs / name), found[1]

    def dry_run(self, name: str) -> str:
        said = self._command("submit", name, "--nodes=2", "--ntasks-per-node=1", "--dry-run")
        assert not (self._runs / name).exists()
        return said

    def _command(self, verb: str, name: str, *more: str, env: dict[str, str] | None = None) -> str:
        argv = [sys.executable, "-m", "tl_dist.cli.main", verb, str(self._config), f"name={name}"]
        # A job starts where it was submitted, and so finds the package of this checkout.
        return self._slurm.run(*argv, f"--runs={self._runs}", *more, env=env, cwd=CHECKOUT)


@pytest.fixture(scope="module")
def harness(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness(slurm, tmp_path_factory.mktemp("submit"))


@pytest.fixture(scope="module")
def one_worker(harness: Harness) -> RunDir:
    """The run without Slurm that the others are held against."""
    return harness.train_here("one_worker")


@pytest.fixture(scope="module")
def tracker() -> Iterator[MlflowServer]:
    """To which the job below sends a copy."""
    with mlflow_server() as server:
        yield server


@pytest.fixture(scope="module")
def two_nodes(slurm: SlurmCluster, harness: Harness, tracker: MlflowServer) -> RunDir:
    """The same run on two nodes, not interrupted."""
    resources = ["--gpus-per-node=1", "--cpus-per-task=2", "--partition=main", "--time=1:00:00"]
    tracked, env = "report.track=[mlflow]", {"MLFLOW_TRACKING_URI": tracker.address}
    run, job_id = harness.submit("two_nodes", tracked, *resources, "--extra=--exclusive", env=env)
    assert slurm.wait(job_id, timeout_s=200) == COMPLETED, log_of(run, job_id)
    return run


COMPLETED = FinishedJob("COMPLETED", exit_code=0, signal=0, restarts=0)


def test_two_nodes_train_as_one_worker_does(one_worker: RunDir, two_nodes: RunDir) -> None:
    assert two_nodes.done is not None
    expected = losses(one_worker)
    assert sorted(expected) == list(range(1, NUM_STEPS + 1))
    assert losses(two_nodes) == pytest.approx(expected, rel=ROUNDING)


def test_a_job_is_one_run_of_its_tracker_and_sync_sends_what_it_had_no_time_for(
    two_nodes: RunDir, tracker: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.address)
    assert len(tracker.runs) == 1
    for _ in range(2):
        sync(two_nodes.path)
        sent = Counter(step for name, step, _, _ in tracker.metrics if name == "train/loss")
        assert sent == Counter(range(1, NUM_STEPS + 1))
        assert [one["info"]["status"] for one in tracker.runs] == ["FINISHED"]


@pytest.mark.full
def test_two_nodes_train_through_mpi(slurm: SlurmCluster, harness: Harness, one_worker: RunDir) -> None:
    # Open MPI leaves loopback out by default, and all these nodes are on it.
    env = {"OMPI_MCA_btl_tcp_if_include": "lo", "OMPI_MCA_btl": "self,tcp"}
    run, job_id = harness.submit("mpi", "--mpi=pmix", env=env)
    assert slurm.wait(job_id, timeout_s=200) == COMPLETED, log_of(run, job_id)
    assert losses(run) == pytest.approx(losses(one_worker), rel=ROUNDING)


@pytest.mark.full
def test_two_nodes_train_by_tensorflows_own_collectives(
    slurm: SlurmCluster, harness: Harness, one_worker: RunDir
) -> None:
    run, job_id = harness.submit("collective", "strategy=collective")
    assert slurm.wait(job_id, timeout_s=200) == COMPLETED, log_of(run, job_id)
    assert losses(run) == pytest.approx(losses(one_worker), rel=ROUNDING)
    assert "strategy: collective" in run.config_file.read_text()


def test_interrupted_job_ends_with_the_same_weights(slurm: SlurmCluster, harness: Harness, two_nodes: RunDir) -> None:
    """Asked to stop as before a time limit, then a worker is killed; each time Slurm starts the job again."""
    # A worker stops after its tenth step of each attempt, and the other waits for it: nothing is a race.
    env = {"TL_ALLOW_FAILPOINTS": "1", "TL_FAILPOINT": "train.chunk_done@1:10=stop"}
    run, job_id = harness.submit("interrupted", env=env)
    worker = stopped_worker(slurm, run)
    slurm.run("scancel", "--signal=USR1", "--batch", job_id)
    slurm.wait_until(run.stop_requested, "the request to stop", timeout_s=60)
    os.kill(worker, signal.SIGCONT)
    slurm.wait_until(lambda: slurm.job(job_id)["Restarts"] == "1", "the first restart", timeout_s=120, every_s=0.5)
    stopped_at = newest_step(run)
    assert 10 <= stopped_at < NUM_STEPS

    os.kill(stopped_worker(slurm, run), signal.SIGKILL)
    os.kill(stopped_worker(slurm, run), signal.SIGCONT)
    end = slurm.wait(job_id, timeout_s=200)

    assert end == FinishedJob("COMPLETED", exit_code=0, signal=0, restarts=2), log_of(run, job_id)
    attempts = [json.loads(path.read_text()) for path in sorted(run.attempts.glob("*.json"))]
    assert [attempt["exit_code"] for attempt in attempts] == [75, 137, 0]
    assert attempts[1]["rank"] == 1
    assert attempts[1]["from_step"] == stopped_at
    assert run.done is not None
    assert weights(run) == weights(two_nodes)
    assert losses(run) == losses(two_nodes)


@pytest.mark.full
def test_hung_worker_is_found_named_and_ended(slurm: SlurmCluster, harness: Harness) -> None:
    """Its process lives and answers its peers, so that neither Slurm nor Gloo would ever notice."""
    run, job_id = harness.submit(
        "hung",
        "--max-requeue=0",
        "safety.hang_s=10",
        "safety.heartbeat_s=2",
        env={"TL_ALLOW_FAILPOINTS": "1", "TL_FAILPOINT": "train.chunk_done@1:5=sleep=600"},
    )
    end = slurm.wait(job_id, timeout_s=200)
    log = log_of(run, job_id)
    assert (end.state, end.exit_code) == ("FAILED", ExitCode.PEER_LOST), log
    assert re.search(
        r"rank 1 on node\d: stalled, without progress for \d+ s while reporting, at step 5, and was killed",
        log,
    )
    assert "Fatal Python error: Aborted" in run.rank_log(1).read_text()  # with the stack of each thread


def test_tasks_that_cannot_meet_refuse_to_train_alone(slurm: SlurmCluster, two_nodes: RunDir) -> None:
    """srun without a plan and without PMIx: each task would be a world of its own."""
    argv = ["srun", "--nodes=2", "--ntasks=2", sys.executable, "-m", "tl_dist.trainer", str(two_nodes.path)]
    with pytest.raises(ClusterError, match=r"Horovod sees 1 workers, but the launcher started 2\b.*Fix: ") as refusal:
        slurm.run(*argv, cwd=CHECKOUT)
    assert f"exit code {int(ExitCode.UNSAFE)}" in str(refusal.value)


def test_dry_run_shows_the_job_and_submits_nothing(slurm: SlurmCluster, harness: Harness) -> None:
    said = harness.dry_run("dry")
    assert "#SBATCH --nodes=2" in said
    assert "rank 1, node 1, local rank 0: " in said
    assert "srun --mpi=none --ntasks=2 " in said
    assert "dry" not in slurm.run("squeue", "--all", "--format=%j")


def losses(run: RunDir) -> dict[int, float]:
    """The loss of each step; where an attempt repeats steps of an earlier one, the later."""
    whole_lines = run.metrics_file.read_text().rpartition("\n")[0].splitlines()  # it may be growing
    records = (json.loads(line) for line in whole_lines)
    return {record["step"]: record["loss"] for record in records if record["event"] == "train"}


def weights(run: RunDir) -> dict[str, bytes]:
    """The tensors' files of the last checkpoint, byte for byte."""
    step, checkpoint = steps_in(run.checkpoints)[0]
    assert step == NUM_STEPS
    files = {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}
    assert files
    return files


def newest_step(run: RunDir) -> int:
    return max(step for step, _ in steps_in(run.checkpoints))


def stopped_worker(slurm: SlurmCluster, run: RunDir) -> int:
    """The pid of rank 1, once it has stopped at its failpoint."""

    def is_stopped() -> bool:
        beat = run.beats.read().get(1)
        return beat is not None and state_of(beat.pid) in "Tt"

    slurm.wait_until(is_stopped, f"the stop of rank 1 of {run.name}", timeout_s=150)
    return run.beats.read()[1].pid


def log_of(run: RunDir, job_id: str) -> str:
    return (run.logs / f"slurm_{job_id}.out").read_text()
