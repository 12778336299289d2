"""`tl-dist sync`: copy a run to its trackers, at once or by a process beside the run for as long as it trains."""

import os
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tl_dist.config import file as config_file
from tl_dist.launcher.companion import LAST_S
from tl_dist.refusal import ExitCode, Refusal, printable
from tl_dist.runs.directory import RunDir
from tl_dist.tools import track

_EVERY_S = 30.0
_QUIET = {
    # The libraries would wait much longer for a server that does not answer.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "WANDB_DISABLE_GIT": "true",  # it would ask git about the directory
    "WANDB_HTTP_TIMEOUT": "20",
    **{
        f"WANDB__{what}_RETRY_{limit}": value
        for what in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")
        for limit, value in (("MAX", "3"), ("WAIT_MAX_SECONDS", "5"))
    },
}
_PATHS = re.compile(r"NETRC|(?:SSL_CERT|(?:REQUESTS|CURL)_CA|WANDB)\w*_(?:DIR|FILE|BUNDLE)")


def sync(path: Path) -> list[str]:
    """Send each tracker of the run what it does not have yet; return a line on each."""
    run, trackers = _tracked(path)
    if not trackers:
        what = f"{run.config_file} names no tracker."
        fix = "repeat 'tl-dist train' with report.track=[mlflow]: the run resumes where it is."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    return track.sync(run, trackers)


def after_report(path: Path, page: Path) -> list[str]:
    """Send the new report page of a tracked run; return a line on each tracker, also on a failure."""
    run, trackers = _tracked(path)
    if not trackers or page.resolve() != (run.path / "report.html").resolve():
        return []
    try:
        return track.sync(run, trackers)
    except Refusal as refusal:
        return [str(refusal)]


def beside(path: Path, write_page: Callable[[Path], object]) -> int:
    """Copy a run until standard input ends, then send the rest, within a time limit.

    If the run is done and has no report, `write_page` writes it.
    """
    (run, trackers), ended, logged = _tracked(path), threading.Event(), ""

    def send(*, live: bool = False) -> None:
        """Send what is new, and log the outcome unless it is the last one again."""
        nonlocal logged
        try:
            outcome = "; ".join(track.sync(run, trackers, live=live))
        except Refusal as refusal:
            outcome = str(refusal)
        if outcome != logged:
            sys.stdout.write(f"{printable(outcome)}\n")
            sys.stdout.flush()
        logged = outcome

    threading.Thread(target=_watch, args=(ended,), daemon=True).start()
    os.nice(10)
    while not ended.is_set():
        send(live=True)
        ended.wait(_EVERY_S)
    send()
    if run.done is not None and not os.path.lexists(run.path / "report.html"):
        with suppress(Refusal):
            write_page(run.path)
            send()
    return ExitCode.DONE


def _watch(ended: threading.Event) -> None:
    while os.read(0, 1):
        pass
    ended.set()
    threading.Event().wait(LAST_S[True])
    os._exit(ExitCode.REQUEUE)  # a library that waits for a server cannot be interrupted


def _tracked(path: Path) -> tuple[RunDir, tuple[str, ...]]:
    """Return a run and its trackers; set the environment variables that their libraries read when they are imported."""
    run = RunDir.open(path)
    trackers = config_file.load(run.config_file, imports=False).report.track
    if trackers:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        os.environ.pop("WANDB_DIR", None)  # the library looks for settings there; copies are in RUN/track
        for name, value in os.environ.items():
            if _PATHS.fullmatch(name) and value:
                os.environ[name] = os.path.abspath(os.path.expanduser(value))
    return run, trackers
