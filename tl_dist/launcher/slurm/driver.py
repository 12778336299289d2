"""Inside a Slurm job: one `srun` for all workers, with our own rendezvous, watched until its end.

This runs on the job's first node, started by the batch script (`tl-dist srun RUN_DIR`). Slurm owns every
worker: no ssh, no MPI. A peer that is dead, frozen or cut off is noticed by Gloo; one whose main thread hangs,
by its heartbeat.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.files.atomic import write_atomically
from tl_dist.launcher.attempt import End, explained
from tl_dist.launcher.command import SUPERVISED, worker_environment
from tl_dist.launcher.group import GRACE_S, Exit
from tl_dist.launcher.hang import HangDetector
from tl_dist.launcher.rendezvous import Rendezvous
from tl_dist.launcher.slurm.end import attempt_code, first_cause
from tl_dist.launcher.slurm.job import SlurmJob, rendezvous_address
from tl_dist.launcher.slurm.step import Step, say, srun_command
from tl_dist.launcher.supervise import signals_counted
from tl_dist.parallel.slots import integer, plan_text
from tl_dist.refusal import ExitCode, printable
from tl_dist.runs.directory import RunDir, steps_in

MPI_VARIABLE = "TL_DIST_MPI"

_POLL_S = 0.1
_BEATS_S = 2.0
_NUM_LAST_LINES = 20
_LINE_WIDTH = 300


def drive(run_dir: Path, env: Mapping[str, str]) -> ExitCode:
    """Run all workers of one attempt, from the batch script; return what the attempt came to.

    DONE only when every worker ended with 0 and the run has its DONE marker. A signal asks the run to stop,
    by its stop file, and does nothing else: the workers commit and end by themselves. Call it from the main
    thread.
    """
    run = RunDir.open(run_dir)
    cfg = config_file.load(run.config_file)
    job = SlurmJob.from_env(env)
    mpi = env.get(MPI_VARIABLE) or "none"
    cpus = integer(env, "SLURM_CPUS_PER_TASK") if "SLURM_CPUS_PER_TASK" in env else None
    argv = srun_command(run.path, num_tasks=job.num_tasks, cpus_per_task=cpus, mpi=mpi)
    run.claim()
    run.clear_beats()
    with ExitStack() as stack:
        task_env = _task_environment(cfg, job, env)
        meeting = mpi
        if mpi == "none":
            rendezvous = stack.enter_context(Rendezvous(job.plan, rendezvous_address(job, env)))
            task_env |= rendezvous.job_environment()
            meeting = f"rendezvous at {rendezvous.endpoint}"
        say(f"{job.num_tasks} workers on {plan_text(job.plan)}, {meeting}")
        signals = stack.enter_context(signals_counted())
        record = _Record(run, job, argv)
        step = Step(job, argv, task_env)
        hung = _watch(run, cfg, step, stop_asked=lambda: signals.stop)
    end = _end(run, step, record, hung)
    _report(run, end)
    record.close(end)
    return ExitCode(end.code)


class _Record:
    """The attempt's file below attempts/: written when it begins, completed when it ends."""

    def __init__(self, run: RunDir, job: SlurmJob, argv: list[str]) -> None:
        number = run.next_attempt()
        self._run = run
        self._path = run.attempts / f"{number:04d}.json"
        self._log_starts = {rank: _size(run.rank_log(rank)) for rank in range(job.num_tasks)}
        self._facts: dict[str, Any] = {
            "attempt": number,
            "host": socket.gethostname(),
            "supervisor_pid": os.getpid(),
            "began": _now(),
            "from_step": _newest_step(run),
            "workers": job.num_tasks,
            "argv": argv,
            "slurm_job": {"id": job.job_id, "restart_count": job.restart_count, "plan": plan_text(job.plan)},
        }
        self._write()

    def last_lines(self, rank: int) -> list[str]:
        """The end of what a worker wrote into its log in this attempt."""
        path = self._run.rank_log(rank)
        try:
            with path.open("rb") as log:
                log.seek(max(self._log_starts.get(rank, 0), _size(path) - 100_000))
                return log.read().decode(errors="replace").splitlines()[-_NUM_LAST_LINES:]
        except OSError:
            return []

    def close(self, end: End) -> None:
        self._facts |= {"ended": _now(), "exit_code": int(end.code), "rank": end.rank, "reason": end.cause}
        self._write()

    def _write(self) -> None:
        write_atomically(self._path, json.dumps(self._facts, indent=1).encode())


def _watch(run: RunDir, cfg: Config, step: Step, *, stop_asked: Callable[[], bool]) -> dict[int, str]:
    """Stay until srun has ended; returns the ranks that hung and were ended with their peers, if any.

    A failed worker leaves the others a few seconds to notice and to end by themselves. One that has stopped
    on request leaves them all the time they need.
    """
    detector = HangDetector(cfg.safety, from_step=_newest_step(run), now=time.monotonic())
    look_again = 0.0
    failed_at: float | None = None
    stopping = False
    while not step.wait(_POLL_S):
        now = time.monotonic()
        if stop_asked() and not run.stop_requested():
            run.request_stop()
        if not stopping and run.stop_requested():
            stopping = True
            say("stopping after this step, saving")
        if step.failed:
            failed_at = failed_at or now
            if now - failed_at > GRACE_S:
                step.end()
                return {}
        if now >= look_again:
            look_again = now + _BEATS_S
            gone = {rank for end in step.ended for rank in end.tasks}
            hung = detector.hung(range(step.num_tasks), run.read_beats(), now=now)
            if hung.keys() - gone:
                step.end()
                return {rank: how for rank, how in hung.items() if rank not in gone}
    return {}


def _end(run: RunDir, step: Step, record: _Record, hung: Mapping[int, str]) -> End:
    """What the attempt came to and, where it failed, the rank and the reason."""
    if hung:
        rank, how = next(iter(hung.items()))
        return End(ExitCode.PEER_LOST, rank, f"{how}, and was killed", lines=record.last_lines(rank))
    code = attempt_code(step.returncode, step.ended, done=run.done is not None)
    if code == ExitCode.DONE:
        return End(code, cause="done")
    if code == ExitCode.REQUEUE:
        return End(code, cause="stopped on request, after a commit")
    cause = first_cause(step.ended, code)
    if cause is None and code == ExitCode.INTERNAL:
        what = f"all workers ended with exit code 0, but {run.done_file} is missing"
        return End(code, cause=what, fix=f"read {run.logs}.")
    if cause is None:
        return End(code, cause=f"srun itself ended with {step.returncode}", fix="read what it says above.")
    rank = cause.tasks[0]
    lines = record.last_lines(rank)
    if step.num_unasked is not None and cause in step.ended[step.num_unasked :]:
        return End(code, rank, "did not end when another worker failed, and was killed", lines=lines)
    end = explained(Exit(rank, cause.code), lines)
    return End(code, rank, f"{end.cause} on {cause.host}", end.fix, lines)


def _report(run: RunDir, end: End) -> None:
    """Say it in the job's log, after the end of the worker's log that shows it."""
    if end.rank is not None and end.lines:
        say(f"the end of {run.rank_log(end.rank)}:")
        sys.stderr.write("".join(f"    {printable(line[:_LINE_WIDTH])}\n" for line in end.lines))
    who = "" if end.rank is None else f"rank {end.rank}: "
    fix = f". Fix: {end.fix}" if end.fix else ""
    say(f"{who}{end.cause}{fix} (exit code {int(end.code)})")


def _task_environment(cfg: Config, job: SlurmJob, env: Mapping[str, str]) -> dict[str, str]:
    processes = max(tasks for _, tasks in job.plan)
    cores = len(os.sched_getaffinity(0))
    common = worker_environment(cfg, env, processes=processes, cores=cores)
    # Nobody else writes the workers' logs or shows their progress here.
    return {name: value for name, value in common.items() if name != SUPERVISED}


def _newest_step(run: RunDir) -> int:
    return max((step for step, _ in steps_in(run.checkpoints)), default=0)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
