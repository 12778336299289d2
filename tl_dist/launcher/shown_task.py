"""What workers do other than train, with the progress shown: extraction, cross-validation, tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tl_dist.config import Config
from tl_dist.launcher.command import require_package
from tl_dist.launcher.local import local_launch
from tl_dist.launcher.task import run_task
from tl_dist.launcher.train import Request, after_source_task, open_run, prepare_shown
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.records import NewRecords
from tl_dist.terminal.progress import Progress

if TYPE_CHECKING:
    from tl_dist.terminal.console import Console


def run_shown(request: Request, cfg: Config, task: Sequence[str], what: str, console: Console) -> RunDir:
    """Have the workers of `cfg` do `task` (options of the worker) to the end; its run directory.

    A source task comes first; it is the one that training the config of this request makes or finds.
    """
    if cfg.source is not None and cfg.source.data is not None:
        name = cfg.source.name or f"{request.load().name}-source"
        cfg = cfg.model_copy(update={"source": cfg.source.model_copy(update={"name": name})})
        code, cfg = after_source_task(cfg, request.runs, console)
        if code != ExitCode.DONE:
            stopped = f"the source task of the {what} was stopped."
            raise Refusal(stopped, fix="run the same command again.", code=ExitCode.REQUEUE)
    require_package(cfg)
    run = open_run(request.runs, cfg)
    prepare_shown(cfg, console)
    records = NewRecords(run.metrics_file)
    with Progress(console, every_s=cfg.report.every_s) as progress:

        def watch() -> None:
            for record in records.read():
                progress.show(record)

        launch = local_launch(cfg, run.path, task)
        run_task(run, launch, what=what, heading=" ".join(task), watch=watch)
    return run
