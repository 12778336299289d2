"""One srun: its command line, its process, and what it says."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from tl_dist.launcher.command import worker_argv
from tl_dist.launcher.slurm.end import TasksEnded, tasks_ended
from tl_dist.launcher.slurm.job import SlurmJob
from tl_dist.refusal import ExitCode, Refusal, printable

_STACKS_S = 3.0


def srun_command(
    run_dir: Path,
    *,
    num_tasks: int,
    cpus_per_task: int | None = None,
    mpi: str = "none",
    python: str = sys.executable,
) -> list[str]:
    """The one srun of a run. A worker's noise goes to its own log, progress and refusals to the job's."""
    return [
        "srun",
        f"--mpi={mpi}",
        f"--ntasks={num_tasks}",
        "--distribution=block",  # as the plan numbers them
        # Not left to the environment: srun does not read the job's number in several versions of Slurm.
        *([f"--cpus-per-task={cpus_per_task}"] if cpus_per_task else []),
        # Who ends whom, and when, is the driver's to say. Slurm takes a worker that has stopped on request
        # for a failure as well, and would kill rank 0 while it still writes the commit.
        "--kill-on-bad-exit=0",
        "--wait=0",
        "--input=none",
        *worker_argv(run_dir, python=python),
    ]


class Step:
    """A running srun. Its own messages pass through; those on lost tasks are kept, in order of time."""

    def __init__(self, job: SlurmJob, argv: list[str], env: Mapping[str, str]) -> None:
        self.num_tasks = job.num_tasks
        self.ended: list[TasksEnded] = []
        self.num_unasked: int | None = None
        """how many of `ended` there were when we asked the others to end; None when we never did"""
        self._name = f"{job.job_id}.0"  # the driver starts one step in each attempt
        try:
            self._process = subprocess.Popen(
                argv,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except FileNotFoundError:
            raise Refusal(
                "srun is not on this node.", fix="install Slurm there.", code=ExitCode.USAGE
            ) from None
        self._reader = threading.Thread(target=self._read, name="srun-stderr", daemon=True)
        self._reader.start()

    @property
    def returncode(self) -> int:
        """Known once `wait` said that it has ended."""
        return self._process.returncode

    @property
    def failed(self) -> bool:
        """Whether a worker has ended in another way than done or stopped on request."""
        return any(end.code != ExitCode.REQUEUE for end in self.ended)

    def wait(self, seconds: float) -> bool:
        """Whether srun has ended, and all that it said was read, after at most so long."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._reader.join()
        return True

    def end(self) -> None:
        """End all tasks: ABRT first, which leaves every thread's stack in the logs, then KILL."""
        self.num_unasked = len(self.ended)
        # CONT, since a stopped process gets its signals when it goes on.
        for signal_names in (("ABRT", "CONT"), ("KILL",)):
            for name in signal_names:
                # It complains when some of the tasks have ended, and signals the others all the same.
                argv = ["scancel", f"--signal={name}", self._name]
                subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if self.wait(_STACKS_S):
                return
        while not self.wait(60.0):
            say(f"waiting for Slurm to end step {self._name}")

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            sys.stderr.write(printable(line, lines=True))
            sys.stderr.flush()
            if (end := tasks_ended(line)) is not None:
                self.ended.append(end)


def say(text: str) -> None:
    """One line in the log of the job."""
    sys.stderr.write(f"tl-dist: {printable(text)}\n")
    sys.stderr.flush()
