"""How a failure is shown to the user and to a scheduler: one exception, the exit codes, and text safe to print.

A file name, a class name or a config key can hold an escape sequence that renames the window, or a bidirectional
control that shows `gnp.exe` as `exe.png`. All printed text therefore passes through `printable`: errors when they are
created, everything else in `tl_dist.terminal.console`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import IntEnum

_LONGEST_WHAT, _LONGEST_FIX = 1_000, 700  # characters: names and values come from files of any size
_NO_CAUSE = ("Graph execution error", "Detected at node", "File ", "<stack traces", "[[{{node")
_NODES = re.compile(r"^(\{\{\S+ [^}]*\}\} *)+")
_GAP = re.compile(r"\s+", re.ASCII)  # other spaces, such as the Japanese one, may be part of a name

# Control characters (C0 except the tab, and C1), line and paragraph separators, bidirectional controls, and lone
# surrogates, which stand for bytes of names that are not UTF-8. Joiners, which emoji and Persian need, are harmless.
_BEYOND_C0 = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_OBEYED = re.compile(f"[\x00-\x08\n-\x1f{_BEYOND_C0}]")
_OBEYED_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f{_BEYOND_C0}]")


class ExitCode(IntEnum):
    """Exit codes by which a process tells its supervisor why it ended (from sysexits.h where it has a fitting one)."""

    DONE = 0
    USAGE = 64  # command line or config
    DATA = 65
    INTERNAL = 70
    CANNOT_CREATE = 73  # the run directory cannot be created, or another process owns it
    STORAGE = 74
    REQUEUE = 75  # stopped on request after a checkpoint: run me again
    PEER_LOST = 76  # another worker died or hangs: restartable
    UNSAFE = 78  # refused for safety: a mismatch, or untrusted input
    NO_REQUEUE = 93  # diverged or no progress: running it again will not help


class Refusal(Exception):
    """A condition that the user can fix: one printable line that says what is wrong, where, and how to fix it.

    `str()` gives "WHAT Fix: HOW". It is shown without a traceback; the process exits with `code`.
    """

    def __init__(self, what: str, *, fix: str, code: ExitCode) -> None:
        self.what = shortened(printable(_GAP.sub(" ", what).strip(" ")), _LONGEST_WHAT)
        self.fix = shortened(printable(fix), _LONGEST_FIX)
        self.code = code
        super().__init__(f"{self.what} Fix: {self.fix}")

    def __reduce__(self) -> tuple[Callable[..., Refusal], tuple[str, str, ExitCode]]:
        # For process pools: by default an unpickled exception is rebuilt from its text alone.
        return _refusal, (self.what, self.fix, self.code)


def from_child(code: int, stderr: str) -> Refusal | None:
    """Return the refusal with which a child of this process ended: the last line of its output that has a fix."""
    for line in reversed(stderr.splitlines()):
        what, mark, fix = line.partition(" Fix: ")
        if mark and code in set(ExitCode):
            return Refusal(what, fix=fix, code=ExitCode(code))
    return None


def _refusal(what: str, fix: str, code: ExitCode) -> Refusal:
    return Refusal(what, fix=fix, code=code)


def printable(text: str, *, lines: bool = False) -> str:
    """Replace each character that a terminal would obey instead of showing by its escape, such as backslash-x1b.

    `lines`: keep line ends.
    """
    pattern = _OBEYED_IN_LINES if lines else _OBEYED
    return pattern.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def is_printable(text: str) -> bool:
    """Return whether `printable` would leave these lines unchanged."""
    return _OBEYED_IN_LINES.search(text) is None


def shortened(text: str, limit: int) -> str:
    """Cut the middle out of a text that is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 5]} ... {text[-tail:]}"


def telling_line(text: str) -> str:
    """Return the first line of a TensorFlow error that names a cause, rather than the failing graph or node."""
    lines = [line for each in text.splitlines() if (line := _NODES.sub("", each.strip()))]
    cause = next((line for line in lines if not line.startswith(_NO_CAUSE)), "no reason given")
    return cause[:200].rstrip(".")
