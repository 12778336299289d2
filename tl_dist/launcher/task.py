"""`tl-dist eval`: the figures of a checkpoint of a run, computed by workers as in training."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from tl_dist.cli.arguments import Computation
from tl_dist.config import Config, registry
from tl_dist.config import file as config_file
from tl_dist.data.corruptions import prepare
from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.launcher.attempt import Launch
from tl_dist.launcher.classify_exits import ORDERLY, judged
from tl_dist.launcher.command import has_horovod, num_workers, of_processes, require_package, visible_gpus
from tl_dist.launcher.group import Group
from tl_dist.launcher.local import local_launch
from tl_dist.launcher.supervise import failure, signals_counted
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.checkpoint_reader import refuse_unknown
from tl_dist.runs.directory import RunDir
from tl_dist.runs.exit_records import Endings
from tl_dist.runs.lock import holder
from tl_dist.terminal.progress import Record


def evaluate(
    path: Path,
    split: str,
    how: Computation,
    *,
    by: Sequence[str] = (),
    corruptions: tuple[Sequence[str], Sequence[int]] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Record:
    """The evaluation of a split, as a record of `metrics.jsonl` has it. Of the run it writes only its predictions.

    `say` is told the workers. `by`: figures by group as well, as `datasets.grouping.named` has it. `corruptions`: in
    place of all that, the record of images with these at these severities.
    """
    run = RunDir.open(path)
    cfg, options = for_workers(run, how)
    say(f"evaluating with strategy={cfg.strategy} workers={cfg.workers}")
    refuse_in_use(run)
    task = ["--evaluate", split, *options, *(word for name in by for word in ("--by", name))]
    result = f"{split}.json"
    if corruptions is not None:
        prepare(corruptions[0])
        task += ["--corruptions", *(",".join(map(str, one)) for one in corruptions)]
        result = f"{split}_corruptions.json"
    run_task(run, local_launch(cfg, run.path, task), what="evaluation", heading=split)
    record: Record = json.loads(read_file(run.evaluations / result, max_bytes=limits.EVALUATION))
    return record


def for_workers(run: RunDir, how: Computation) -> tuple[Config, list[str]]:
    """The config that workers compute by, and their options that make it out of that of the run."""
    refuse_unknown(how.at)
    cfg = config_file.load(run.config_file)
    overrides = [*how.overrides, *workers_here(cfg, how.strategy, how.workers, visible_gpus(os.environ))]
    cfg = config_file.load(run.config_file, overrides)
    require_package(cfg)
    options = [word for override in overrides for word in ("--override", override)]
    return cfg, [*options, *(["--at", how.at] if how.at else [])]


def refuse_in_use(run: RunDir) -> None:
    """Refuse a run that somebody trains: its workers would see our heartbeats, and we their stop file."""
    owner = holder(run)
    if owner is not None:
        raise Refusal(
            f"run '{run.name}' is in use by {owner}.",
            fix="wait for its end; while it trains, metrics.jsonl has its figures.",
            code=ExitCode.CANNOT_CREATE,
        )


def workers_here(cfg: Config, strategy: str | None, workers: int | None, gpus: int) -> list[str]:
    """The strategy and workers of a task whose result is the same for any, as overrides of the run's config."""
    strategy = None if strategy == registry.AUTO else strategy
    if workers is None:
        one = strategy is not None and registry.strategy(strategy).workers == "one"
        workers = 1 if one else min(max(1, gpus), num_workers(cfg, gpus))
    if strategy is None:
        one = registry.strategy(cfg.strategy).workers == "one"
        several = of_processes(cfg, has_horovod()) if one else cfg.strategy
        strategy = "single" if workers == 1 else several
    return [f"strategy={strategy}", f"workers={workers}"]


def run_task(
    run: RunDir, launch: Launch, *, what: str, heading: str, watch: Callable[[], None] = lambda: None
) -> None:
    """Have the workers do one thing, and wait for it; a failure or a stop is refused with its reason.

    `watch` is called while they work. Their output is in logs/WHAT_rank_0000.out.
    """
    run.clear_stop()
    endings = Endings(run.attempts / f"{what}-{os.getpid()}")
    with (
        signals_counted() as signals,
        launch() as commands,
        Group(
            commands, lambda rank: run.logs / f"{what}_rank_{rank:04d}.out", endings, heading=heading
        ) as group,
    ):
        while not group.wait(0.1) and not signals.stop and _orderly(group):
            watch()
        group.end(grace_s=0 if signals.stop else None)
        watch()
        run.clear_stop()
        endings.clear()
        if signals.stop or any(exit.code == ExitCode.REQUEUE for exit in group.exits):
            stopped = f"the {what} was stopped."
            raise Refusal(stopped, fix="run the same command again.", code=ExitCode.REQUEUE)
        end = judged(group.exits, done=True)
        if not end.orderly:
            log = Path(os.path.relpath(run.logs / f"{what}_rank_{end.rank:04d}.out"))
            raise failure(end, end.code, socket.gethostname(), log)


def _orderly(group: Group) -> bool:
    return all(exit.code in ORDERLY for exit in group.exits)
