"""Tasks that only read a run, which may be in use: what their workers say and leave goes to a directory of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tl_dist.cli.arguments import Computation
from tl_dist.files.scratch import keep, scratch
from tl_dist.launcher.local import local_launch
from tl_dist.launcher.task import for_workers, run_task
from tl_dist.refusal import Refusal
from tl_dist.runs.directory import RunDir


@contextmanager
def directory() -> Iterator[Path]:
    """A private one, for as long as it is used; it stays where an error says to read a log in it."""
    with scratch(Path(tempfile.gettempdir()), "tl-dist") as made:
        RunDir(made).attempts.mkdir()  # where workers say how they ended
        try:
            yield made
        except Refusal as refusal:
            if made.name in refusal.fix:
                keep(made)
            raise


def work(
    run: RunDir,
    task: Sequence[str],
    into: Path,
    how: Computation,
    *,
    what: str,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Have workers do `task` (options of the worker) with the model of `run`, and leave the answer in `into`."""
    cfg, options = for_workers(run, how)
    launch = local_launch(cfg, run.path, ["--apart", str(into), *task, *options])
    run_task(RunDir(into), launch, what=what, heading=what, watch=watch)
