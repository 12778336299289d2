"""A worker imports no more than it needs, and only the first one writes an evaluation down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tl_dist.runs.directory import RunDir
from tl_dist.scores.evaluation import Evaluation
from tl_dist.tools.evaluate import Request, work
from tl_dist.trainer import evaluate

CODE = """
import gc, sys
from tl_dist.trainer.__main__ import import_keras
import_keras()
assert "tensorflow" in sys.modules and "keras" in sys.modules
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
print(sorted({"sklearn", "scipy.stats", "matplotlib", "pandas", "pyarrow", "IPython"} & sys.modules.keys()))
import keras, matplotlib.figure, scipy.stats, sklearn.metrics
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
        splits={"test": SimpleNamespace(class_names=["a", "b"])},
        state=SimpleNamespace(step=1),
    )
    monkeypatch.setattr(work, "setup", lambda *given, **options: fake_setup)
    monkeypatch.setattr(evaluate, "evaluate_checkpoint", lambda *given: result)
    monkeypatch.setattr(evaluate, "split_of", lambda setup, split: setup.splits[split])
    assert work.run(RunDir(tmp_path), Request(split="test"), 1) == 0
    written = tmp_path / "evaluations" / "test.json"
    assert written.exists() == (rank == 0)
    assert rank or json.loads(written.read_text())["figures"] == {"mcc": 1.0}
