"""Tasks that only read a run, which may be in use: what their workers say and leave goes to a directory of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tl_dist.cli.evaluate import run_task, workers_here
from tl_dist.config import file as config_file
from tl_dist.launcher.command import require_package, visible_gpus
from tl_dist.launcher.local import local_launch
from tl_dist.refusal import Refusal
from tl_dist.runs.checkpoint_reader import refuse_unknown
from tl_dist.runs.directory import RunDir


@contextmanager
def directory() -> Iterator[Path]:
    """A private one, for as long as it is used; it stays where an error says to read a log in it."""
    made = Path(tempfile.mkdtemp(prefix="tl-dist-"))
    RunDir(made).attempts.mkdir()  # where workers say how they ended
    try:
        yield made
    except Refusal as refusal:
        if made.name not in refusal.fix:
            shutil.rmtree(made)
        raise
    except BaseException:
        shutil.rmtree(made)
        raise
    shutil.rmtree(made)


def work(
    run: RunDir,
    task: Sequence[str],
    into: Path,
    *,
    what: str,
    strategy: str | None,
    workers: int | None,
    overrides: Sequence[str] = (),
    at: str = "",
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Have workers do `task` (options of the worker) with the model of `run`, and leave the answer in `into`.

    The answer is that of any number of workers, so by default there are no more than this machine has GPUs, or one.
    """
    refuse_unknown(at)
    asked = [
        *overrides,
        *workers_here(config_file.load(run.config_file), strategy, workers, visible_gpus(os.environ)),
    ]
    cfg = config_file.load(run.config_file, asked)
    require_package(cfg)
    options = ["--at", at] if at else []
    options += [word for override in asked for word in ("--override", override)]
    launch = local_launch(cfg, run.path, ["--apart", str(into), *task, *options])
    run_task(RunDir(into), launch, what=what, heading=what, watch=watch)
