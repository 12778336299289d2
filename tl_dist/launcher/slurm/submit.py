"""Turn a config into a run directory and a Slurm job: `tl-dist submit`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tl_dist.config import Config, registry
from tl_dist.launcher.command import has_horovod, of_processes, require_package
from tl_dist.launcher.slurm.script import SubmitOptions, options_from, submit
from tl_dist.launcher.train import Request, headline, open_run, prepare_shown, with_trained_source
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.runs.lock.owner import OwningJob
from tl_dist.terminal.tables import relative

if TYPE_CHECKING:
    from tl_dist.terminal.console import Console


def layout_of(asked: Config, wanted: SubmitOptions, horovod: bool) -> list[str]:
    """Return a job's strategy and workers, as overrides of its config; `horovod` is True if that is installed."""
    workers = wanted.nodes * wanted.ntasks_per_node
    if workers > 1:
        strategy = "horovod" if wanted.mpi != "none" else of_processes(asked, horovod)
        return [f"strategy={strategy}", f"workers={workers}"]
    if asked.strategy != registry.AUTO:
        return []
    # A single task has all GPUs of its node. This host's own GPUs do not count.
    replicas = asked.workers or wanted.gpus_per_node or 1
    return ["strategy=mirrored", f"workers={replicas}"] if replicas > 1 else ["strategy=single"]


def submit_run(
    request: Request, options: Mapping[str, Any], console: Console, *, dry_run: bool = False
) -> int:
    """Submit a run; with `dry_run`, show what would be submitted, and write nothing.

    More than one task means a strategy of processes, with one worker in each.
    """
    wanted = options_from(**options)
    layout = layout_of(request.load(resolve=False), wanted, has_horovod())
    cfg = with_trained_source(request.load(*layout), request.runs)
    run = RunDir(request.runs / cfg.name)
    console.say(headline(cfg, run), style="bold")
    if dry_run:
        result = submit(run.path, wanted, dry_run=True)
        console.say(f"would write {relative(result.script_path)}:")
        for line in (*result.script.split("\n"), result.step_command, *result.rank_commands):
            console.say(line)
        return ExitCode.DONE
    require_package(cfg)
    run = open_run(request.runs, cfg)
    prepare_shown(cfg, console)  # on the login node, often the only one with internet access
    result = submit(run.path, wanted, env=os.environ)
    run.claim(OwningJob(str(result.job_id)))
    console.say(f"job {result.job_id} of {relative(result.script_path)}; its output: {relative(run.logs)}")
    return ExitCode.DONE
