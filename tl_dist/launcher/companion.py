"""Copy a run to its trackers by a process beside it, and tell what they do not have yet."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tl_dist.config import Config, registry
from tl_dist.files import packages
from tl_dist.files.atomic import open_to_append
from tl_dist.runs.directory import RunDir, read_json
from tl_dist.runs.table import state_of

LAST_S = {True: 15.0, False: 5.0}
"""seconds to wait for the copy of a run, by True if it is done, by False if it was stopped"""


def require_trackers(trackers: Iterable[str]) -> None:
    """Refuse (64) a tracker whose library is not installed."""
    for name in trackers:
        packages.require(registry.TRACKERS[name].packages, extra=name, what=f"report.track: {name}")


@contextmanager
def copying(run: RunDir, cfg: Config) -> Iterator[None]:
    """Copy a run to its trackers while the body trains it, by a process that training never waits for.

    At the end it gets `LAST_S` for the rest. It inherits this command's environment, keys for trackers included.
    """
    if not cfg.report.track:
        yield
        return
    hold, end = os.pipe()
    process = start(run, hold)
    os.close(hold)
    try:
        yield
    finally:
        os.close(end)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LAST_S[run.done is not None])
        process.kill()
        process.wait()


def start(run: RunDir, until: int) -> subprocess.Popen[bytes]:
    """Start the process, which ends soon after the other end of the pipe `until` is closed, or its owner dies."""
    log = open_to_append(run.logs / "track.out")
    try:
        # A session of its own: Ctrl-C is for the run, whose last records still have to be sent.
        argv = [sys.executable, "-m", "tl_dist", "sync", str(run.path.absolute()), "--beside"]
        return subprocess.Popen(argv, stdin=until, stdout=log, stderr=log, start_new_session=True)
    finally:
        os.close(log)


def left_for_sync(run: RunDir, trackers: Iterable[str]) -> str | None:
    """Return a line that names the trackers that lack a part of the run; None if there are none."""
    seen = {"bytes": bytes_of(run), "state": state_of(run)}
    progress = {name: read_json(place_of(run) / f"{name}.json") or {} for name in trackers}
    names = [name for name, known in progress.items() if known.get("seen") != seen]
    return f"not all of it has been sent to {' and '.join(names)}: tl-dist sync {run.path}" if names else None


def place_of(run: RunDir) -> Path:
    """Return the directory in which the trackers' progress is recorded."""
    return run.path / "track"


def bytes_of(run: RunDir) -> int:
    """Return the size of the run's records."""
    with suppress(FileNotFoundError):
        return run.metrics_file.stat().st_size
    return 0
