"""What the user is told when it cannot be done: one line, and an exit code (those of sysexits.h)."""

from __future__ import annotations

from pathlib import Path

CHECK_FAILED, USAGE, UNAVAILABLE, INTERNAL, CANNOT_CREATE = 1, 64, 69, 70, 73
# `tl-dist install-horovod` runs this from the installed package.
COMMAND = "tl-dist install-horovod" if Path(__file__).parents[2].name == "shipped" else "launch/install_horovod"
MEANWHILE = "`strategy=mirrored` (one process, no Horovod) works meanwhile"


class Refusal(Exception):
    """One line for the user, ending in 'Fix: ...', and the exit code that goes with it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
