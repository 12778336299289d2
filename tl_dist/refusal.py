"""The one exception that a person sees, and the exit codes that a scheduler reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import IntEnum

from tl_dist.printable import printable, shortened

_LONGEST_WHAT, _LONGEST_FIX = 1_000, 700  # characters: names and values come from files of any size
_GAP = re.compile(r"\s+", re.ASCII)  # other spaces, as of Japanese, are part of a name


class ExitCode(IntEnum):
    """What a finished process says to its supervisor (sysexits.h where it has a word for it)."""

    DONE = 0
    USAGE = 64  # command line or config
    DATA = 65
    INTERNAL = 70
    CANNOT_CREATE = 73  # run directory cannot be made, or another process owns it
    STORAGE = 74
    REQUEUE = 75  # stopped on request after a commit: run me again
    PEER_LOST = 76  # another worker died or hangs: restartable
    UNSAFE = 78  # refused for safety: a mismatch, or untrusted input
    NO_REQUEUE = 93  # diverged or no progress: running it again will not help


class Refusal(Exception):
    """A condition that a person can mend: one printable line that says what and where, then how to fix it.

    `str()` gives "WHAT Fix: HOW". Nobody shows a traceback for it; the process exits with `code`.
    """

    def __init__(self, what: str, *, fix: str, code: ExitCode) -> None:
        self.what = shortened(printable(_GAP.sub(" ", what).strip(" ")), _LONGEST_WHAT)
        self.fix = shortened(printable(fix), _LONGEST_FIX)
        self.code = code
        super().__init__(f"{self.what} Fix: {self.fix}")

    def __reduce__(self) -> tuple[Callable[..., Refusal], tuple[str, str, ExitCode]]:
        # A process pool brings it from a child; an exception is otherwise made again from its text alone.
        return _refusal, (self.what, self.fix, self.code)


def _refusal(what: str, fix: str, code: ExitCode) -> Refusal:
    return Refusal(what, fix=fix, code=code)
