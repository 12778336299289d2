"""Run one attempt inside a Slurm job: its workers are the tasks of one `srun`, with our own rendezvous.

The batch script starts this on the job's first node (`tl-dist srun RUN_DIR`). Slurm owns every worker: no ssh,
no MPI. Gloo notices a peer that is dead, frozen or cut off; heartbeats reveal one whose main thread hangs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.launcher.attempt import Attempt
from tl_dist.launcher.command import Command, worker_environment
from tl_dist.launcher.slurm.job import Allocation, rendezvous_address
from tl_dist.launcher.slurm.step import Step, srun_command
from tl_dist.launcher.supervise import failure, report, signals_counted
from tl_dist.refusal import ExitCode
from tl_dist.rendezvous.rank_layout import integer, placements_of, plan_text
from tl_dist.rendezvous.server import Rendezvous
from tl_dist.runs.directory import RunDir
from tl_dist.terminal.progress import Progress

MPI_VARIABLE = "TL_DIST_MPI"


def drive(run_dir: Path, env: Mapping[str, str], progress: Progress) -> ExitCode:
    """Run all workers of one attempt, from the batch script; return DONE or REQUEUE, raise a Refusal otherwise.

    DONE requires that every worker ended with 0 and the run has its DONE marker. A signal only writes the stop
    file: the workers save and end by themselves. Call it from the main thread.
    """
    run = RunDir.open(run_dir)
    cfg = config_file.load(run.config_file)
    job = Allocation.from_env(env)
    launch = partial(_launch, run, cfg, job, env, progress.say)
    facts = {"id": job.job_id, "restart_count": job.restart_count, "plan": plan_text(job.plan)}
    run.claim()
    with signals_counted() as signals:
        start = partial(Step, job_id=job.job_id)
        outcome = Attempt(run, cfg, progress, signals, start=start, facts={"slurm_job": facts}).watch(launch)
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
