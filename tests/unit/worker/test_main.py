"""A worker imports no more than it needs, and what it left out can still be imported."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from tl_dist.worker.__main__ import import_keras
import_keras()
assert "tensorflow" in sys.modules and "keras" in sys.modules
print(sorted({"sklearn", "scipy.stats", "matplotlib"} & sys.modules.keys()))
import keras, matplotlib.figure, scipy.stats, sklearn.metrics
print(keras.layers.Dense(2)(keras.ops.ones((1, 3))).shape, sklearn.metrics.f1_score([0, 1], [0, 1]))
"""


def test_the_import_of_keras_brings_neither_scikit_learn_nor_matplotlib() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "(1, 2) 1.0"]
