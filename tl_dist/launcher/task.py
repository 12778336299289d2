"""Have workers answer a tool's request, a task other than training, and show the progress of long ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tl_dist.config import Config, registry
from tl_dist.config import file as config_file
from tl_dist.launcher import train
from tl_dist.launcher.classify_exits import ORDERLY, classify
from tl_dist.launcher.command import has_horovod, num_workers, of_processes, require_package, visible_gpus
from tl_dist.launcher.local import Group, local_launch
from tl_dist.launcher.supervise import failure, signals_counted
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.checkpoint_reader import refuse_unknown
from tl_dist.runs.directory import RunDir
from tl_dist.runs.exit_records import ExitRecords
from tl_dist.runs.lock import holder
from tl_dist.runs.records import NewRecords
from tl_dist.runs.request import Request
from tl_dist.terminal.progress import Progress

if TYPE_CHECKING:
    from tl_dist.terminal.console import Console


@dataclass(frozen=True)
class Computation:
    """How to compute a result from a run on this machine; the result is the same for any number of workers."""

    at: str = ""
    """the checkpoint: "best", "last", a step, or "": the best where the run keeps one"""
    strategy: str | None = None
    workers: int | None = None
    """default: no more than this machine has GPUs, or one"""
    overrides: Sequence[str] = ()
    """KEY=VALUE over the config of the run"""


def config_for(run: RunDir, how: Computation) -> Config:
    """Return the config for workers on this host: the run's, with the changes of `how`."""
    refuse_unknown(how.at)
    cfg = config_file.load(run.config_file)
    overrides = [*how.overrides, *workers_here(cfg, how.strategy, how.workers, visible_gpus(os.environ))]
    cfg = config_file.load(run.config_file, overrides)
    require_package(cfg)
    return cfg


def overrides_for(cfg: Config, how: Computation) -> list[str]:
    """Return the overrides that turn the run's config into `cfg`, as `config_for` returns it."""
    return [*how.overrides, f"strategy={cfg.strategy}", f"workers={cfg.workers}"]


def run_shown(wanted: train.Request, cfg: Config, request: Request, what: str, console: Console) -> RunDir:
    """Have the workers of `cfg` answer `request`, after the source task of `wanted`; show their progress."""
    if cfg.source is not None and cfg.source.data is not None:
        name = cfg.source.name or f"{wanted.load().name}-source"
        cfg = cfg.model_copy(update={"source": cfg.source.model_copy(update={"name": name})})
        code, cfg = train.after_source_task(cfg, wanted.runs, console)
        if code != ExitCode.DONE:
            stopped = f"the source task of the {what} was stopped."
            raise Refusal(stopped, fix="run the same command again.", code=ExitCode.REQUEUE)
    require_package(cfg)
    run = train.open_run(wanted.runs, cfg)
    train.prepare(cfg, console)
    records = NewRecords(run.metrics_file)
    with Progress(console, every_s=cfg.report.every_s) as progress:

        def watch() -> None:
            for record in records.read():
                progress.show(record)

        run_task(run, cfg, request, what=what, watch=watch)
    return run


def refuse_in_use(run: RunDir) -> None:
    """Refuse (73) a run that is being trained: its workers would see our heartbeats, and we their stop file."""
    owner = holder(run)
    if owner is not None:
        fix = "wait for its end; while it trains, metrics.jsonl has its figures."
        raise Refusal(f"run '{run.name}' is in use by {owner}.", fix=fix, code=ExitCode.CANNOT_CREATE)


def workers_here(cfg: Config, strategy: str | None, workers: int | None, gpus: int) -> list[str]:
    """Return overrides with the strategy and workers of a task whose result does not depend on them."""
    strategy = None if strategy == registry.AUTO else strategy
    if workers is None:
        single = strategy is not None and registry.strategy(strategy).workers == "one"
        workers = 1 if single else min(max(1, gpus), num_workers(cfg, gpus))
    if strategy is None:
        single = registry.strategy(cfg.strategy).workers == "one"
        several = of_processes(cfg, has_horovod()) if single else cfg.strategy
        strategy = "single" if workers == 1 else several
    return [f"strategy={strategy}", f"workers={workers}"]


def run_task(
    run: RunDir,
    cfg: Config,
    request: Request,
    *,
    what: str,
    heading: str = "",
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Have the workers of `cfg` answer a request about `run`, and wait for the answer.

    Refuses if they fail or are stopped, with the reason. Calls `watch` while they work. Their output goes to
    logs/WHAT_rank_0000.out of the run, or of `request.into`.
    """
    place = RunDir(request.into) if request.into else run
    place.clear_stop()
    task = place.attempts / f"{what}-{os.getpid()}"
    exit_records, file = ExitRecords(task), task.with_suffix(".request")
    request.save(file)
    try:
        with (
            signals_counted() as signals,
            local_launch(cfg, run.path, file) as commands,
            Group(
                commands,
                lambda rank: place.logs / f"{what}_rank_{rank:04d}.out",
                exit_records,
                heading=heading or what,
            ) as group,
        ):
            while not (group.wait(0.1) or signals.stop or any(exit.code not in ORDERLY for exit in group.exits)):
                watch()
            group.end(grace_s=0 if signals.stop else None)
            watch()
    finally:
        file.unlink(missing_ok=True)
        place.clear_stop()
        exit_records.clear()
    if signals.stop or any(exit.code == ExitCode.REQUEUE for exit in group.exits):
        stopped = f"the {what} was stopped."
        raise Refusal(stopped, fix="run the same command again.", code=ExitCode.REQUEUE)
    outcome = classify(group.exits, done=True)
    if not outcome.orderly:
        log = Path(os.path.relpath(place.logs / f"{what}_rank_{outcome.rank:04d}.out"))
        raise failure(outcome, outcome.code, socket.gethostname(), log)
