"""The command line as a user has it, on a run of a few seconds that takes long enough to be interrupted."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tl_dist as tl
from tests import forks
from tl_dist.runs.directory import RunDir, steps_in
from tl_dist.runs.records import records as all_records

BIN = Path(sys.executable).parent
TL_DIST = forks.program()
INSTALLED = str(BIN / "tl-dist")
"""the program for tests of processes themselves: how they start, hang and die"""
NUM_STEPS = 40

CONFIG = f"""\
strategy: horovod
workers: 2
global_batch: 15
steps: {NUM_STEPS}
precision: float32
data:
  name: digits
  image_size: 32
  augment: [pad_crop]
model:
  backbone: tiny
  weights: random
  train_from: all
  dropout: 0.1
optimizer:
  name: sgd
  learning_rate: 0.01
report:
  every_steps: 1
  tensorboard: false
checkpoint:
  every_steps: 8
  keep: 3
runtime:
  threads: 1
"""


ONE_WORKER = ("strategy=single", "workers=1")
SMALL = """\
precision: float32
report: {tensorboard: false}
runtime: {threads: 1}
"""
"""lines of a config that is not CONFIG"""
EVERY_STEP = SMALL.replace("false", "false, every_steps: 1")
"""the same, with a record of each step; else the clock decides which have one"""


STARTED: list[subprocess.Popen[str]] = []
"""what a test has started; what is left of it at its end is killed, and workers die with their supervisor"""


class Workspace:
    """A directory with one config; runs are made below it."""

    def __init__(self, directory: Path, config: str = CONFIG) -> None:
        self.directory = directory
        (directory / "trial.yaml").write_text(config)

    def argv(self, name: str, *more: str, launcher: Sequence[str] = (), program: str = TL_DIST) -> list[str]:
        return [*launcher, program, "train", "trial.yaml", f"name={name}", *more]

    def start(self, argv: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        env = dict(os.environ, **environment)
        process = subprocess.Popen(
            argv, cwd=self.directory, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        STARTED.append(process)
        return process

    def train(self, name: str, *more: str, expect: int = 0, launcher: Sequence[str] = ()) -> str:
        """Run to the end of the command; what it printed."""
        program = INSTALLED if launcher else TL_DIST
        process = self.start(self.argv(name, *more, launcher=launcher, program=program))
        said, _ = process.communicate(timeout=240)
        assert process.returncode == expect, said
        return said

    def train_here(self, name: str, *overrides: str) -> RunDir:
        """The same by one worker, where the process is not the subject: this one has imported everything."""
        cfg = tl.load_config(self.directory / "trial.yaml", f"name={name}", *overrides, *ONE_WORKER)
        tl.train(cfg, runs=self.directory / "runs", here=True)
        return self.run(name)

    def start_up_to(
        self, name: str, step: int, *, rank: int, program: str = INSTALLED
    ) -> tuple[subprocess.Popen[str], int]:
        """Start a run in which a worker stops (SIGSTOP) after a step: the process, and the worker's pid.

        The others then wait in the middle of the next step, for as long as the caller likes: nothing is a race.
        It would stop there again in an attempt that does as many steps by itself.
        """
        failpoint = f"train.chunk_done@{rank}:{step}=stop"
        process = self.start(self.argv(name, program=program), TL_FAILPOINT=failpoint, TL_ALLOW_FAILPOINTS="1")
        return process, self.stopped(process, name, rank)

    def stopped(self, process: subprocess.Popen[str], name: str, rank: int) -> int:
        """The pid of a worker of `process`, once it has stopped at its failpoint."""

        def is_stopped() -> bool:
            assert process.poll() is None, process.communicate()[0]
            beat = self.run(name).beats.read().get(rank) if self.run(name).path.exists() else None
            return beat is not None and state_of(beat.pid) in "Tt"

        wait_for(is_stopped, f"the stop of rank {rank} of {name}")
        return self.worker_pid(name, rank)

    def worker_pid(self, name: str, rank: int) -> int:
        return self.run(name).beats.read()[rank].pid

    def run(self, name: str) -> RunDir:
        return RunDir(self.directory / "runs" / name)


def records(run: RunDir, event: str) -> list[dict[str, Any]]:
    """The records of one kind."""
    return [record for record in all_records(run.metrics_file) if record["event"] == event]


def step_of(run: RunDir) -> int:
    """Steps reported so far."""
    return max((record["step"] for record in records(run, "train")), default=0)


def state_of(pid: int) -> str:
    """The kernel's letter for what a process does (R, S, T, Z ...); X for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has reaped yet does not."""
    return state_of(pid) not in "ZX"


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(0.02)


def newest(run: RunDir) -> Path:
    """The state of the newest checkpoint."""
    return steps_in(run.checkpoints)[0][1] / "state.safetensors"


def bits(run: RunDir) -> str:
    """sha256 of the whole newest state: weights, optimizer slots, counters."""
    return hashlib.sha256(newest(run).read_bytes()).hexdigest()


def losses(run: RunDir) -> dict[int, float]:
    """The loss of every step."""
    return {record["step"]: record["loss"] for record in records(run, "train")}
