"""A worker imports no more than it needs, the first alone writes, and what ends one is a line, whatever is full."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import CONFIG
from tl_dist.datasets.annotations import Annotations
from tl_dist.files.atomic import of_the_machine
from tl_dist.launcher.classify_exits import RESTARTABLE
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores.evaluation import Evaluation
from tl_dist.tools.evaluate import Request, work
from tl_dist.trainer import __main__ as main
from tl_dist.trainer import evaluate

LEAVING = """
import atexit, sys, time
from tl_dist.trainer.__main__ import bound_exit
atexit.register(time.sleep, {waits})
sys.exit(bound_exit({code}, within_s=1))
"""
CODE = """
import gc, sys
from tl_dist.trainer.__main__ import import_keras
import_keras()
assert "tensorflow" in sys.modules and "keras" in sys.modules
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
left_out = {"sklearn", "scipy.stats", "scipy.sparse", "matplotlib", "pandas", "pyarrow", "IPython"}
print(sorted(left_out & sys.modules.keys()))
import keras, matplotlib.figure, scipy.sparse, scipy.stats, sklearn.metrics
print(keras.layers.Dense(2)(keras.ops.ones((1, 3))).shape, sklearn.metrics.f1_score([0, 1], [0, 1]))
"""


def test_the_import_of_keras_brings_no_wrapper_of_other_packages_and_no_work_for_the_collector() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True True", "[]", "(1, 2) 1.0"]


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_worker_that_has_the_figures_writes_them_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """Of two that write the same file the last one wins: an evaluation lost its figures by chance."""
    result = Evaluation("test", 2, 2, 0.1, np.eye(2, dtype=np.int64), figures={} if rank else {"mcc": 1.0})
    fake_setup = SimpleNamespace(
        is_first=rank == 0,
        splits={"test": SimpleNamespace(class_names=["a", "b"], annotations=Annotations())},
        state=SimpleNamespace(step=1),
    )
    monkeypatch.setattr(work, "setup", lambda *given, **options: fake_setup)
    monkeypatch.setattr(evaluate, "evaluate_checkpoint", lambda *given: result)
    monkeypatch.setattr(evaluate, "split_of", lambda setup, split: setup.splits[split])
    assert work.run(RunDir(tmp_path), Request(split="test"), 1) == 0
    written = tmp_path / "evaluations" / "test.json"
    assert written.exists() == (rank == 0)
    assert rank or json.loads(written.read_text())["figures"] == {"mcc": 1.0}


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
    assert main.report_error(3, error, Full())[0] == code


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_what_tensorflow_says_of_a_full_disk_is_known() -> None:
    with pytest.raises(tf.errors.OpError) as caught:
        tf.io.write_file("/dev/full", "x" * (1 << 20))
    refusal = of_the_machine(caught.value)
    assert refusal is not None and refusal.code == ExitCode.STORAGE
    assert refusal.what == "No space left on device."


def test_another_error_is_none_of_the_machine() -> None:
    assert of_the_machine(ValueError("x")) is None and of_the_machine(OSError(errno.EIO, "x")) is None


@pytest.fixture(scope="module")
def no_memory() -> tf.errors.OpError:
    """TensorFlow's own error, for which it takes 10 s: no machine has 4 EiB."""
    with pytest.raises(tf.errors.ResourceExhaustedError) as raised:
        tf.zeros([2**30, 2**30])
    return raised.value


def test_tensorflows_own_error(no_memory: tf.errors.OpError) -> None:
    answer = main.out_of_memory(no_memory)
    assert answer is not None and "the memory of CPU:0 is not enough (" in answer.what
    assert "double accumulate" in answer.fix and answer.code not in RESTARTABLE
    assert "\n" not in str(answer) and len(answer.what) < 400


def test_a_worker_says_it_in_one_line_and_leaves_word_of_it(
    no_memory: tf.errors.OpError,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(*_: object, **__: object) -> None:
        raise no_memory

    left: list[tuple[object, ...]] = []
    monkeypatch.setenv("TL_DIST_SUPERVISED", "1")
    for name in ("_stop_on_signals", "import_keras", "allow_many_open_files"):
        monkeypatch.setattr(main, name, lambda *_: None)
    monkeypatch.setattr(main, "_train", train)
    monkeypatch.setattr(main, "_leave", lambda *given: left.append(given))
    RunDir.create(tmp_path, CONFIG)
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
    answer = main.out_of_memory(getattr(tf.errors, kind)(None, None, message))
    assert (answer and answer.what.partition(" is not enough")[0]) == (where and f"the memory of {where}")


def test_a_fault_of_the_program_that_mentions_memory_stays_one() -> None:
    assert main.out_of_memory(ValueError("out of memory of what was said")) is None


@pytest.mark.parametrize(("code", "status"), [(ExitCode.REQUEUE, -signal.SIGALRM), (ExitCode.DONE, ExitCode.DONE)])
def test_a_worker_that_was_stopped_does_not_wait_at_its_exit(code: ExitCode, status: int) -> None:
    """As TensorFlow's collectives do at times for a worker that has gone; at the end of a run all have time."""
    argv = [sys.executable, "-c", LEAVING.format(code=int(code), waits=60 if status < 0 else 2)]
    assert subprocess.run(argv, timeout=50, check=False).returncode == status
