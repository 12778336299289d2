"""A worker imports no more than it needs, and what it left out can still be imported."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc, sys
from tl_dist.worker.__main__ import import_keras
import_keras()
assert "tensorflow" in sys.modules and "keras" in sys.modules
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
print(sorted({"sklearn", "scipy.stats", "matplotlib"} & sys.modules.keys()))
import keras, matplotlib.figure, scipy.stats, sklearn.metrics
print(keras.layers.Dense(2)(keras.ops.ones((1, 3))).shape, sklearn.metrics.f1_score([0, 1], [0, 1]))
"""


def test_the_import_of_keras_brings_no_scikit_learn_no_matplotlib_and_no_work_for_the_collector() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True True", "[]", "(1, 2) 1.0"]
