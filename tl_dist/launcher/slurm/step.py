"""Run workers as the tasks of one srun: its command line and its process."""

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

_LOOK_S = 0.5  # between looks at the run directory, which may be on a network file system
_KILLED = 128 + signal.SIGKILL


def srun_command(
    run_dir: Path, *, num_tasks: int, cpus_per_task: int | None = None, mpi: str = "none"
) -> list[str]:
    """Return the command line of a run's only srun. A worker's output goes to its own log, as without Slurm."""
    return [
        "srun",
        f"--mpi={mpi}",
        f"--ntasks={num_tasks}",
        "--distribution=block",  # as the plan numbers them
        # Passed explicitly: srun ignores the job's value in several versions of Slurm.
        *([f"--cpus-per-task={cpus_per_task}"] if cpus_per_task else []),
        # The supervisor alone ends workers. Slurm would take a worker that has stopped on request for a failure,
        # and kill rank 0 while it still writes the checkpoint.
        "--kill-on-bad-exit=0",
        "--wait=0",
        "--input=none",
        f"--output={run_dir}/logs/rank_%4t.out",  # RunDir.rank_log
        "--open-mode=append",
        *(sys.executable, "-P", "-m", "tl_dist.launcher.slurm.task"),
        *worker_argv(run_dir),
    ]


class Step(Workers):
    """Workers as the tasks of one srun, which every one of `commands` is. srun's own output goes to the job's log."""

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
        self._name = f"{job_id}.0"  # each attempt has one step
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
                yield self._unrecorded_exit(rank, over)

    def _unrecorded_exit(self, rank: int, returncode: int) -> Exit:
        """Return the exit of a task that left no exit record."""
        if returncode == 0 or self._asked:
            return Exit(rank, _KILLED if self._asked else 0, self._asked)
        what = f"left no exit code, and srun ended with {returncode}: it was killed, lost its node, or never began"
        return Exit(rank, _KILLED, what=what, fix="read what srun says in the log of the job.")

    def _signal(self, ranks: Sequence[int], number: signal.Signals) -> None:
        # To all tasks: scancel cannot choose among them. It complains about ended tasks, and signals the others.
        argv = ["scancel", f"--signal={number.name.removeprefix('SIG')}", self._name]
        subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _release(self) -> None:
        self._srun.wait()
