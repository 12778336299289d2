"""Workers that are the tasks of one srun: its command line and its process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tl_dist.launcher.command import Command, worker_argv
from tl_dist.launcher.workers import Exit, Workers
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.exit_records import ExitRecords

_LOOK_S = 0.5  # between looks at the run directory, which may be far away
_KILLED = 128 + signal.SIGKILL


def srun_command(
    run_dir: Path, *, num_tasks: int, cpus_per_task: int | None = None, mpi: str = "none"
) -> list[str]:
    """The one srun of a run. What a worker prints goes to its own log, as where there is no Slurm."""
    return [
        "srun",
        f"--mpi={mpi}",
        f"--ntasks={num_tasks}",
        "--distribution=block",  # as the plan numbers them
        # Not left to the environment: srun does not read the job's number in several versions of Slurm.
        *([f"--cpus-per-task={cpus_per_task}"] if cpus_per_task else []),
        # Who ends whom, and when, is the supervisor's to say. Slurm takes a worker that has stopped on request
        # for a failure as well, and would kill rank 0 while it still writes the checkpoint.
        "--kill-on-bad-exit=0",
        "--wait=0",
        "--input=none",
        f"--output={run_dir}/logs/rank_%4t.out",  # RunDir.rank_log
        "--open-mode=append",
        *(sys.executable, "-P", "-m", "tl_dist.launcher.slurm.task"),
        *worker_argv(run_dir),
    ]


class Step(Workers):
    """The tasks of a running srun, which each of `commands` is. What srun says itself is for the log of the job."""

    def __init__(
        self,
        commands: Sequence[Command],
        log: Callable[[int], Path],
        exit_records: ExitRecords,
        *,
        heading: str = "",
        job_id: int,
    ) -> None:
        super().__init__(commands, log, exit_records, heading=heading)
        self._name = f"{job_id}.0"  # there is one step in each attempt
        self._look_again = 0.0
        environment = {**commands[0].environment, **exit_records.environment}
        try:
            self._srun = subprocess.Popen(commands[0].argv, env=environment, stdin=subprocess.DEVNULL)
        except FileNotFoundError:
            raise Refusal(
                "srun is not on this node.", fix="install Slurm there.", code=ExitCode.USAGE
            ) from None

    def _newly_ended(self) -> Iterator[Exit]:
        over = self._srun.poll()
        if over is None and time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + _LOOK_S
        missing = set(self.alive)
        for rank, code, what, fix in self._exit_records.read(missing):
            missing.discard(rank)
            yield Exit(rank, code, self._asked, what, fix)
        if over is not None:
            for rank in sorted(missing):
                yield self._without_a_word(rank, over)

    def _without_a_word(self, rank: int, returncode: int) -> Exit:
        """The end of a task after which nobody was there to write it down."""
        if returncode == 0 or self._asked:
            return Exit(rank, _KILLED if self._asked else 0, self._asked)
        what = f"left no exit code, and srun ended with {returncode}: it was killed, lost its node, or never began"
        return Exit(rank, _KILLED, what=what, fix="read what srun says in the log of the job.")

    def _signal(self, ranks: Sequence[int], number: signal.Signals) -> None:
        # To all tasks: Slurm knows no other way. It complains of those that have ended, and signals the others.
        argv = ["scancel", f"--signal={number.name.removeprefix('SIG')}", self._name]
        subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _release(self) -> None:
        self._srun.wait()
