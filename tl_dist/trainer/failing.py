"""Report the error that ends a worker; explain a device out of memory, which another attempt would not mend."""

from __future__ import annotations

import re
import sys
import traceback
from contextlib import suppress
from typing import TextIO

from tl_dist.files.atomic import of_the_machine
from tl_dist.refusal import ExitCode, Refusal, printable

_OUT_OF_MEMORY = re.compile(
    r"OOM when allocating|out of memory|CUDA_ERROR_OUT_OF_MEMORY|CUDNN_STATUS_ALLOC_FAILED"
    r"|CUBLAS_STATUS_ALLOC_FAILED|failed to allocate .*bytes",
    re.IGNORECASE,
)
"""in messages of TensorFlow's allocator, of XLA, and of CUDA's libraries in an error of another type"""
_DEVICE = re.compile(r"\b(GPU|CPU)[:_](\d+)")


def report_error(rank: int, error: Exception, shown: TextIO) -> tuple[ExitCode, str, str]:
    """Write one line on the error for the user; return the exit code, what happened, and the fix.

    A stream that cannot be written, such as a log on a full disk, does not hide the error.
    """
    refusal = error if isinstance(error, Refusal) else out_of_memory(error)
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


def out_of_memory(error: BaseException) -> Refusal | None:
    """Return the refusal for a device whose memory is full; None for any other error."""
    lines = str(error).splitlines()
    at = next((k for k, line in enumerate(lines) if _OUT_OF_MEMORY.search(line)), None)
    if at is None or type(error).__module__.partition(".")[0] != "tensorflow":
        return None
    device = _DEVICE.search(" ".join(lines[at : at + 2]))
    where = "a device" if device is None else f"{device[1]}:{device[2]}"
    return Refusal(
        f"the memory of {where} is not enough ({lines[at].strip()[:200]}).",
        fix="double accumulate, which leaves every update as it is, or use more workers; for an evaluation lower "
        "evaluation.batch.",
        code=ExitCode.NO_REQUEUE,
    )
