"""Run tasks that only read a run, which may be in use: their output goes to a directory of its own."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tl_dist.files.private import keep, scratch
from tl_dist.launcher.task import Computation, config_for, overrides_for, run_task
from tl_dist.refusal import Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.request import Request


@contextmanager
def directory() -> Iterator[Path]:
    """Create a private directory for the body; keep it only if an error tells the user to read a log in it."""
    with scratch(Path(tempfile.gettempdir()), "tl-dist") as path:
        RunDir(path).attempts.mkdir()  # for the workers' exit records
        try:
            yield path
        except Refusal as refusal:
            if path.name in refusal.fix:
                keep(path)
            raise


def work(
    run: RunDir,
    request: Request,
    into: Path,
    how: Computation,
    *,
    what: str,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Have workers answer `request` with the model of `run`; they write the answer to `into`."""
    cfg = config_for(run, how)
    request = replace(request, at=how.at, overrides=overrides_for(cfg, how), into=str(into))
    run_task(run, cfg, request, what=what, watch=watch)
