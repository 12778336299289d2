"""The last words of a worker that an error ends."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from typing import TextIO

from tl_dist.files.atomic import of_the_machine
from tl_dist.refusal import ExitCode, Refusal, printable
from tl_dist.trainer import out_of_memory


def told(rank: int, error: Exception, shown: TextIO) -> tuple[ExitCode, str, str]:
    """Exit code, what happened and what helps, after a line to a person that says so.

    What does not take it, as a log on a full disk, hides no other error.
    """
    refusal = error if isinstance(error, Refusal) else out_of_memory.refusal_of(error)
    refusal = refusal or of_the_machine(error)
    if refusal is not None:
        code, what, fix = refusal.code, refusal.what, refusal.fix
        line, streams = f"refused: rank {rank}: {refusal}\n", {shown, sys.stderr}
    else:
        code, fix = ExitCode.INTERNAL, ""
        what = f"{type(error).__name__}: {printable(' '.join(str(error).split())[:300])}"
        line, streams = f"failed: rank {rank}: {what}\n", {shown}
        with suppress(OSError):
            traceback.print_exception(error)
    for stream in streams:
        with suppress(OSError):
            stream.write(line)
    return code, what, fix
