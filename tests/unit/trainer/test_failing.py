"""A full disk is told by its name, in whichever words it is said, and hides neither itself nor another error."""

from __future__ import annotations

import errno
import io
import os
import sys

import pytest
import tensorflow as tf

from tl_dist.files.atomic import of_the_machine
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.trainer.__main__ import report_error


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    flush = close = lambda self: None  # type: ignore[assignment,misc]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), ExitCode.STORAGE),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ExitCode.STORAGE),
        (
            OSError("file write failed: errno = 28, error message = 'No space left on device'"),
            ExitCode.STORAGE,
        ),
        (Refusal("no.", fix="x.", code=ExitCode.DATA), ExitCode.DATA),
        (ValueError("x"), ExitCode.INTERNAL),
    ],
)
def test_it_is_told_although_nothing_can_be_written(
    error: Exception, code: ExitCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    assert report_error(3, error, Full())[0] == code


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_what_tensorflow_says_of_a_full_disk_is_known() -> None:
    with pytest.raises(tf.errors.OpError) as caught:
        tf.io.write_file("/dev/full", "x" * (1 << 20))
    refusal = of_the_machine(caught.value)
    assert refusal is not None and refusal.code == ExitCode.STORAGE
    assert refusal.what == "No space left on device."


def test_another_error_is_none_of_the_machine() -> None:
    assert of_the_machine(ValueError("x")) is None and of_the_machine(OSError(errno.EIO, "x")) is None
