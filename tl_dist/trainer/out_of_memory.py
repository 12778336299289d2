"""A device that has run out of memory is no fault of the program, and another attempt would end in the same way."""

from __future__ import annotations

import re

from tl_dist.refusal import ExitCode, Refusal

_SAID = re.compile(
    r"OOM when allocating|out of memory|CUDA_ERROR_OUT_OF_MEMORY|CUDNN_STATUS_ALLOC_FAILED"
    r"|CUBLAS_STATUS_ALLOC_FAILED|failed to allocate .*bytes",
    re.IGNORECASE,
)
"""by TensorFlow's allocator, by XLA, and by CUDA's libraries in an error of another type"""
_DEVICE = re.compile(r"\b(GPU|CPU)[:_](\d+)")


def refusal_of(error: BaseException) -> Refusal | None:
    """The error for a person; None for one that says nothing of a device's memory."""
    lines = str(error).splitlines()
    said = next((k for k, line in enumerate(lines) if _SAID.search(line)), None)
    if said is None or type(error).__module__.partition(".")[0] != "tensorflow":
        return None
    device = _DEVICE.search(" ".join(lines[said : said + 2]))
    where = "a device" if device is None else f"{device[1]}:{device[2]}"
    return Refusal(
        f"the memory of {where} is not enough ({lines[said].strip()[:200]}).",
        fix="double accumulate, which leaves every update as it is, or use more workers; for an evaluation lower "
        "evaluation.batch.",
        code=ExitCode.NO_REQUEUE,
    )
