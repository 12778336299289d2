"""Classify an attempt by how its workers ended. Pure functions."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from tl_dist.refusal import ExitCode
from tl_dist.runs.exit_records import Exit

ORDERLY = (ExitCode.DONE, ExitCode.REQUEUE)
RESTARTABLE = (ExitCode.PEER_LOST, ExitCode.INTERNAL)
_FINAL = set(ExitCode) - {*ORDERLY, *RESTARTABLE}
_LIKELY = {
    signal.SIGKILL: "most likely out of memory, else killed by hand",
    signal.SIGBUS: "most likely /dev/shm or the disk of a memory-mapped file is full",
    signal.SIGABRT: "a C++ library gave up",
}


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. `rank` is the first worker that failed, None when all ended in order."""

    code: int
    rank: int | None = None
    cause: str = ""
    fix: str = ""
    lines: Sequence[str] = ()
    """the last lines of that worker's log"""

    @property
    def orderly(self) -> bool:
        """True if no worker failed."""
        return self.rank is None

    @property
    def restartable(self) -> bool:
        """True if another attempt may succeed: after a lost peer, an internal error or a signal."""
        return self.code in RESTARTABLE or self.code > 128


def classify(exits: Sequence[Exit], *, done: bool) -> Outcome:
    """Derive the outcome from all exits, in order of time, and from the run's DONE marker."""
    failures = [exit for exit in exits if exit.code not in ORDERLY and not exit.asked]
    stopped = any(exit.code == ExitCode.REQUEUE for exit in exits)
    if all(exit.code > 128 for exit in failures) and stopped:
        return Outcome(ExitCode.REQUEUE)  # a worker that was killed after the save changes nothing
    if not failures and done:
        return Outcome(ExitCode.DONE)
    if not failures:
        # Zeros alone are not trusted: some launchers exit with 0 when they are killed.
        missing = "all workers ended with exit code 0, but the run has no DONE marker"
        return Outcome(ExitCode.INTERNAL, 0, missing)
    first = first_failure(exits)
    silent = [exit.rank for exit in exits if exit.asked]
    if first.code == ExitCode.PEER_LOST and silent:
        # All that ended by themselves lost a peer, so the one that noticed nothing is the cause.
        cause = f"did not react when rank {first.rank} lost a peer, and was killed"
        return Outcome(ExitCode.PEER_LOST, silent[0], cause)
    return outcome_of(first)


def first_failure(exits: Sequence[Exit]) -> Exit:
    """Return the cause: a refusal, which a restart would only repeat; else the earliest exit that is no lost peer."""
    failures = [exit for exit in exits if exit.code not in ORDERLY and not exit.asked]
    return min(failures, key=lambda exit: 0 if exit.code in _FINAL else 1 + (exit.code == ExitCode.PEER_LOST))


def outcome_of(exit: Exit) -> Outcome:
    """Explain why a worker ended: by its own message, else by its exit code."""
    if exit.what:
        return Outcome(exit.code, exit.rank, exit.what.rstrip("."), exit.fix)
    if exit.code > 128:
        number = exit.code - 128
        name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
        likely = _LIKELY.get(signal.Signals(number)) if number in list(signal.Signals) else None
        cause = f"was ended by {name}" + (f" ({likely})" if likely else "")
        fix = "use fewer workers or accumulate more micro-batches." if number == signal.SIGKILL else ""
        return Outcome(exit.code, exit.rank, cause, fix)
    if exit.code == ExitCode.STORAGE:  # it could not record on which disk, either
        fix = "make room on the disk of the run, then run the same command again."
        return Outcome(exit.code, exit.rank, "could not write, most likely because a disk is full", fix)
    # Python exits with 1 or 2 if it cannot even start the worker.
    code = exit.code if exit.code in list(ExitCode) else ExitCode.INTERNAL
    return Outcome(code, exit.rank, f"ended with exit code {exit.code}")
