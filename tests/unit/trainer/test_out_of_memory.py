"""A device out of memory is one line that says what to set, and no restart; every other error stays what it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tensorflow as tf

from tests.doubles import CONFIG
from tl_dist.config import file as config_file
from tl_dist.launcher.classify_exits import RESTARTABLE
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.trainer import __main__ as main
from tl_dist.trainer.__main__ import out_of_memory


def test_tensorflows_own_error() -> None:
    """A real one: no machine has 4 EiB."""
    with pytest.raises(tf.errors.ResourceExhaustedError) as raised:
        tf.zeros([2**30, 2**30])
    answer = out_of_memory(raised.value)
    assert answer is not None and "the memory of CPU:0 is not enough (" in answer.what
    assert "double accumulate" in answer.fix and answer.code not in RESTARTABLE
    assert "\n" not in str(answer) and len(answer.what) < 400


def test_a_worker_says_it_in_one_line_and_leaves_word_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left: list[tuple[object, ...]] = []
    monkeypatch.setenv("TL_DIST_SUPERVISED", "1")
    for name in ("_stop_on_signals", "import_keras", "allow_many_open_files"):
        monkeypatch.setattr(main, name, lambda *_: None)
    monkeypatch.setattr(main, "_train", lambda *_, **__: tf.zeros([2**30, 2**30]))
    monkeypatch.setattr(main, "_leave", lambda *given: left.append(given))
    RunDir.create(tmp_path, CONFIG, resolved=config_file.dump(CONFIG))
    umask = os.umask(0o077)
    try:
        main.main([str(tmp_path / CONFIG.name)])
    finally:
        os.umask(umask)
    ((rank, code, what, fix),) = left
    assert (rank, code) == (0, ExitCode.NO_REQUEUE) and code not in RESTARTABLE
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"refused: rank 0: {what} Fix: {fix}" and "double accumulate" in line


@pytest.mark.parametrize(
    ("kind", "message", "where"),
    [
        (
            "ResourceExhaustedError",
            "Graph execution error:\n\nDetected at node conv2d\nOOM when allocating tensor with shape[256,64,112,112] "
            "and type half on /job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc\n [[{{node x}}]]",
            "GPU:0",
        ),
        ("ResourceExhaustedError", "Out of memory while trying to allocate 12884901888 bytes.", "a device"),
        ("InternalError", "Failed to create cuDNN handle: CUDNN_STATUS_ALLOC_FAILED on GPU:3", "GPU:3"),
        ("InternalError", "failed to allocate 1.2GiB (1288490188 bytes) from device", "a device"),
        ("ResourceExhaustedError", "/data/shard-3: Too many open files", None),
        ("InvalidArgumentError", "Incompatible shapes: [3] vs. [4]", None),
    ],
)
def test_what_speaks_of_memory_is_told_from_what_does_not(kind: str, message: str, where: str | None) -> None:
    answer = out_of_memory(getattr(tf.errors, kind)(None, None, message))
    assert (answer and answer.what.partition(" is not enough")[0]) == (where and f"the memory of {where}")


def test_a_fault_of_the_program_that_mentions_memory_stays_one() -> None:
    assert out_of_memory(ValueError("out of memory of what was said")) is None
