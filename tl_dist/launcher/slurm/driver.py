"""Run one attempt inside a Slurm job: its workers are the tasks of one `srun`, with our own rendezvous.

The batch script starts this on the job's first node (`tl-dist srun RUN_DIR`). Slurm owns every worker: no ssh,
no MPI. Gloo notices a peer that is dead, frozen or cut off; heartbeats reveal one whose main thread hangs.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.launcher.attempt import Attempt
from tl_dist.launcher.command import Command, worker_argv, worker_environment
from tl_dist.launcher.slurm.job import Allocation, rendezvous_address
from tl_dist.launcher.supervise import failure, report, signals_counted
from tl_dist.launcher.workers import Workers
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous.rank_layout import integer, placements_of, plan_text
from tl_dist.rendezvous.server import Rendezvous
from tl_dist.runs.directory import RunDir
from tl_dist.runs.exit_records import Exit
from tl_dist.terminal.progress import Progress

MPI_VARIABLE = "TL_DIST_MPI"
_LOOK_S = 0.5  # between looks at the run directory, which may be on a network file system
_KILLED = 128 + signal.SIGKILL


def drive(run_dir: Path, env: Mapping[str, str], progress: Progress) -> ExitCode:
    """Run all workers of one attempt; return DONE or REQUEUE, raise a Refusal otherwise. Call it in the main thread.

    A signal only writes the stop file: the workers save and end by themselves.
    """
    run = RunDir.open(run_dir)
    cfg = config_file.load(run.config_file)
    job = Allocation.from_env(env)
    launch = partial(_launch, run, cfg, job, env, progress.say)
    facts = {"id": job.job_id, "restart_count": job.restart_count, "plan": plan_text(job.plan)}
    run.claim()
    with signals_counted() as signals:
        outcome = Attempt(run, cfg, progress, signals, start=Step, facts={"slurm_job": facts}).watch(launch)
    if outcome.orderly:
        return ExitCode(outcome.code)
    rank = outcome.rank or 0
    host = placements_of(job.plan)[rank].host
    report(run, outcome, progress, host)
    raise failure(outcome, outcome.code, host, run.rank_log(rank))


@contextmanager
def _launch(
    run: RunDir, cfg: Config, job: Allocation, env: Mapping[str, str], say: Callable[[str], None]
) -> Iterator[Sequence[Command]]:
    """Open a rendezvous, unless the workers use MPI; yield one command per rank, all the same srun."""
    mpi = env.get(MPI_VARIABLE) or "none"
    cpus = integer(env, "SLURM_CPUS_PER_TASK") if "SLURM_CPUS_PER_TASK" in env else None
    argv = tuple(srun_command(run.path, num_tasks=job.num_tasks, cpus_per_task=cpus, mpi=mpi))
    processes = max(tasks for _, tasks in job.plan)
    common = worker_environment(cfg, env, processes=processes, cores=len(os.sched_getaffinity(0)))
    rendezvous = Rendezvous(job.plan, rendezvous_address(job, env)) if mpi == "none" else None
    with rendezvous or nullcontext():
        where = f"rendezvous at {rendezvous.endpoint}" if rendezvous else mpi
        say(f"{job.num_tasks} workers on {plan_text(job.plan)}, {where}")
        environment = common | (rendezvous.job_environment() if rendezvous else {})
        yield [Command(rank, argv, environment) for rank in range(job.num_tasks)]


def srun_command(run_dir: Path, *, num_tasks: int, cpus_per_task: int | None = None, mpi: str = "none") -> list[str]:
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

    def _start(self, commands: Sequence[Command]) -> None:
        environment = {**commands[0].environment, **self._exit_records.environment}
        self._name = f"{environment['SLURM_JOB_ID']}.0"  # each attempt has one step
        self._look_again = 0.0
        try:
            self._srun = subprocess.Popen(commands[0].argv, env=environment, stdin=subprocess.DEVNULL)
        except FileNotFoundError:
            raise Refusal("srun is not on this node.", fix="install Slurm there.", code=ExitCode.USAGE) from None

    def _newly_ended(self) -> Iterator[Exit]:
        over = self._srun.poll()
        if over is None and time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + _LOOK_S
        missing = set(self.alive)
        for record in self._exit_records.read(missing):
            missing.discard(record.rank)
            yield record._replace(asked=self._asked)
        if over is not None:
            for rank in sorted(missing):
                yield self._unrecorded_exit(rank, over)

    def _unrecorded_exit(self, rank: int, returncode: int) -> Exit:
        """Return the exit of a task that left no exit record."""
        if returncode == 0 or self._asked:
            return Exit(rank, _KILLED if self._asked else 0, asked=self._asked)
        what = f"left no exit code, and srun ended with {returncode}: it was killed, lost its node, or never began"
        return Exit(rank, _KILLED, what=what, fix="read what srun says in the log of the job.")

    def _signal(self, ranks: Sequence[int], number: signal.Signals) -> None:
        # To all tasks: scancel cannot choose among them. It complains about ended tasks, and signals the others.
        argv = ["scancel", f"--signal={number.name.removeprefix('SIG')}", self._name]
        subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _release(self) -> None:
        self._srun.wait()
