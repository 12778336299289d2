"""What a person sees of a failure and a scheduler reads: one exception, the exit codes, and text that may be shown.

A file's name, a class or a key of a config can hold an escape sequence that renames the window, or a bidirectional
control that shows `gnp.exe` as `exe.png`. Whatever is printed has gone through `printable`: errors as they are made,
all else in `tl_dist.terminal.console`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import IntEnum

_LONGEST_WHAT, _LONGEST_FIX = 1_000, 700  # characters: names and values come from files of any size
_NOT_TELLING = ("Graph execution error", "Detected at node", "File ", "<stack traces", "[[{{node")
_NODES = re.compile(r"^(\{\{\S+ [^}]*\}\} *)+")
_GAP = re.compile(r"\s+", re.ASCII)  # other spaces, as of Japanese, are part of a name

# Control characters (C0 but the tab, and C1), line and paragraph separators, bidirectional controls, and the halves
# of surrogate pairs, which stand for the bytes of names that are not UTF-8. Joiners, which emoji and Persian need,
# are no danger.
_BEYOND_C0 = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_OBEYED = re.compile(f"[\x00-\x08\n-\x1f{_BEYOND_C0}]")
_OBEYED_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f{_BEYOND_C0}]")


class ExitCode(IntEnum):
    """What a finished process says to its supervisor (sysexits.h where it has a word for it)."""

    DONE = 0
    USAGE = 64  # command line or config
    DATA = 65
    INTERNAL = 70
    CANNOT_CREATE = 73  # run directory cannot be made, or another process owns it
    STORAGE = 74
    REQUEUE = 75  # stopped on request after a checkpoint: run me again
    PEER_LOST = 76  # another worker died or hangs: restartable
    UNSAFE = 78  # refused for safety: a mismatch, or untrusted input
    NO_REQUEUE = 93  # diverged or no progress: running it again will not help


class Refusal(Exception):
    """A condition that a person can fix: one printable line that says what and where, then how to fix it.

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


def printable(text: str, *, lines: bool = False) -> str:
    """The text with its escape, such as `\\x1b`, for each character that is not shown but obeyed.

    `lines`: the ends of lines are meant, and stay.
    """
    pattern = _OBEYED_IN_LINES if lines else _OBEYED
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_printable(text: str) -> bool:
    """Whether `printable` would leave these lines as they are."""
    return _OBEYED_IN_LINES.search(text) is None


def shortened(text: str, limit: int) -> str:
    """The text, of a long one its two ends: at most `limit` characters."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 5]} ... {text[-tail:]}"


def telling_line(text: str) -> str:
    """Return, of TensorFlow's many lines, the first with a cause: that a graph has failed, and where, tells nothing."""
    lines = [line for each in text.splitlines() if (line := _NODES.sub("", each.strip()))]
    cause = next((line for line in lines if not line.startswith(_NOT_TELLING)), "no reason given")
    return cause[:200].rstrip(".")
