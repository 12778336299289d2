"""Bring a run to its end: attempt after attempt, each from the last checkpoint, as long as that helps.

Nothing is repaired inside a running attempt: the first failure ends all workers, and the next attempt starts new ones.
Restarts in a row without progress are limited, with growing pauses. A refusal would only be repeated: it is final.
"""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tl_dist.config import Config
from tl_dist.launcher.attempt import Attempt, Signals, newest_checkpoint
from tl_dist.launcher.classify_exits import Outcome
from tl_dist.launcher.local import Launch
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.lock import cannot_lock, holder
from tl_dist.terminal.progress import Progress

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
LONGEST_PAUSE_S = 60.0  # before a restart; the first pause is 1 s, and each is twice the one before
_POLL_S = 0.1


def supervise(
    run: RunDir,
    cfg: Config,
    launch: Launch,
    progress: Progress,
    *,
    longest_pause_s: float = LONGEST_PAUSE_S,
) -> ExitCode:
    """Bring the run to its end; return DONE, or REQUEUE after a request to stop; raise a Refusal for any other end.

    Call it from the main thread. The first signal asks the workers to save and stop; a second Ctrl-C kills them.
    Exit codes of zero count as DONE only with the run's marker.
    """
    try:
        owner = holder(run)
    except OSError as error:
        raise cannot_lock(run, error) from error
    if owner is not None and owner.host == socket.gethostname():
        fix = "wait for it, stop it, or use another name=NAME."
        raise Refusal(f"run '{run.name}' is in use by {owner}.", fix=fix, code=ExitCode.CANNOT_CREATE)
    run.clear_stop()
    host, restarts = socket.gethostname(), 0
    with signals_counted() as signals:
        while True:
            before = _progress_of(run)
            outcome = Attempt(run, cfg, progress, signals).watch(launch)
            if outcome.orderly:
                return ExitCode(outcome.code)
            report(run, outcome, progress, host)
            if not outcome.restartable:
                raise failure(outcome, outcome.code, host, run.rank_log(outcome.rank or 0))
            restarts = 0 if _progress_of(run) != before else restarts
            if restarts >= cfg.safety.max_restarts:
                code = ExitCode.NO_REQUEUE if restarts else outcome.code
                raise failure(outcome, code, host, run.rank_log(outcome.rank or 0), restarts)
            restarts += 1
            pause_s = min(2.0 ** (restarts - 1), longest_pause_s)
            progress.say(
                f"restart {restarts} of {cfg.safety.max_restarts} from step {max(newest_checkpoint(run), 0):,} "
                f"in {pause_s:.0f} s",
                style="yellow",
            )
            until = time.monotonic() + pause_s
            while time.monotonic() < until and not (signals.stop or run.stop_requested()):
                time.sleep(min(_POLL_S, pause_s))
            if signals.stop or run.stop_requested():
                return ExitCode.REQUEUE


def _progress_of(run: RunDir) -> tuple[int, int]:
    """Return what changes when an attempt makes progress: the newest checkpoint, and the size of the quarantine."""
    known = run.quarantine_file
    return newest_checkpoint(run), known.stat().st_size if known.exists() else 0


@contextmanager
def signals_counted() -> Iterator[Signals]:
    """Count, during the body, signals that would end this process by default."""
    signals = Signals()
    # Under nohup SIGHUP is ignored, so that the run outlives the terminal; leave that as it is.
    before = {n: signal.getsignal(n) for n in _SIGNALS}
    before = {n: handler for n, handler in before.items() if n != signal.SIGHUP or handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report(run: RunDir, outcome: Outcome, progress: Progress, host: str) -> None:
    """Show which worker failed and why; `host` is where it ran."""
    rank = outcome.rank or 0
    progress.say(f"rank {rank} on {host}: {outcome.cause} (exit code {outcome.code})", style="bold red")
    if outcome.restartable:
        progress.say(f"the end of {run.rank_log(rank)}:")
        for line in outcome.lines:
            progress.say(f"  {line}", style="dim")


def failure(outcome: Outcome, code: int, host: str, log: Path, restarts: int = 0) -> Refusal:
    """Return the refusal for a failed attempt, with what to do about it."""
    what = f"rank {outcome.rank or 0} on {host}: {outcome.cause}."
    if restarts:
        what += f" {restarts} restart{'s' if restarts > 1 else ''} in a row brought no newer checkpoint."
    known = ExitCode(code) if code in list(ExitCode) else ExitCode.PEER_LOST  # 128 + N: a worker was killed
    return Refusal(what, fix=outcome.fix or f"read {log}.", code=known)
