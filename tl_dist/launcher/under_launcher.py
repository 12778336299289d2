"""Become a worker: `tl-dist train` under horovodrun, mpirun or srun, where this process is one of several."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.launcher.command import require_package, worker_argv
from tl_dist.launcher.companion import start
from tl_dist.launcher.train import Request, open_run, prepare, with_trained_source
from tl_dist.refusal import ExitCode, Refusal, printable
from tl_dist.rendezvous.barrier import SILENT_S
from tl_dist.rendezvous.rank_layout import expected_world_size, rank_in, rank_variable
from tl_dist.runs.directory import RunDir
from tl_dist.terminal.console import Console

JOIN_S = 60.0
"""how long a worker waits for rank 0 to make the run directory"""


def join(request: Request, env: Mapping[str, str], *, become: Callable[[Path], NoReturn] | None = None) -> NoReturn:
    """Become one of a launcher's workers. Rank 0 creates the run directory; the others wait for it."""
    rank, size, variable = rank_in(env), expected_world_size(env), rank_variable(env)
    who = f"rank {rank} of {size or 'unknown'} ({variable})"
    if not 0 <= rank < (size or rank + 1):
        fix = f"unset {variable} where no launcher has started this process."
        raise Refusal(f"this process would be {who}.", fix=fix, code=ExitCode.UNSAFE)
    cfg = request.load("strategy=horovod", f"workers={size or 1}")
    require_package(cfg)
    cfg = with_trained_source(cfg, request.runs)
    run = RunDir(request.runs / cfg.name)
    if rank == 0:
        run = open_run(request.runs, cfg)
        if run.done is None:
            run.clear_stop()  # a stop request for an earlier start
            prepare(cfg, Console(quiet=True))
    else:
        wait_for_run(run, cfg, who=who)
    if run.done is not None:
        sys.exit(ExitCode.DONE)
    if rank == 0 and cfg.report.track:
        until, held = os.pipe()
        # The worker that this process becomes inherits the write end, and closes it by exiting.
        os.set_inheritable(held, True)
        start(run, until)
        os.close(until)
    (become or become_worker)(run.path)


def wait_for_run(run: RunDir, cfg: Config, *, who: str = "this worker", seconds: float = JOIN_S) -> None:
    """Wait until rank 0 has written the config of this worker; report a long wait on stderr, and refuse after it."""
    deadline = time.monotonic() + seconds
    say_at = time.monotonic() + SILENT_S
    while True:
        current = None
        with suppress(Refusal):
            current = config_file.load(run.config_file, imports=False)
            same_layout = (current.strategy, current.workers) == (cfg.strategy, cfg.workers)
            if same_layout and config_file.digest(current) == config_file.digest(cfg):
                return
        if time.monotonic() >= deadline:
            why = "is not there" if current is None else "holds another config"
            what = f"{run.config_file} {why} after {seconds:.0f} s."
            fix = "start all workers with one command line, on storage that all hosts share."
            raise Refusal(what, fix=fix, code=ExitCode.CANNOT_CREATE)
        if time.monotonic() >= say_at:
            say_at = deadline
            what = f"{who} waits for rank 0 to make {run.path}, at most {seconds:.0f} s"
            sys.stderr.write(printable(what) + "\n")
        time.sleep(0.1)


def become_worker(run: Path) -> NoReturn:
    """Replace this process by a worker of the run."""
    argv = worker_argv(run)
    os.execv(argv[0], argv)
