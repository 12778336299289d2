"""No command and no process that it starts imports a module of the working directory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from PIL import Image

from tests.hostile.arena import Arena, Case, Cases

CASES = Cases()

MARK = (
    'import os\nopen(os.path.join(os.environ["RAN"], __name__), "w").close()\nraise ImportError("hostile")\n'
)
CONFIG = """\
name: x
strategy: single
steps: 1
precision: float32
global_batch: 8
data: {name: synthetic, num_examples: 24, num_classes: 3, image_size: 16, augment: [flip]}
model: {backbone: tiny, weights: random}
optimizer: {learning_rate: 0.1}
report: {tensorboard: false}
runtime: {threads: 1}
"""


@pytest.fixture
def poisoned(arena: Arena) -> Arena:
    """A working directory that has a module for every name that is likely to be imported."""
    arena.warm = None  # which has imported them
    for name in (
        "tensorflow",
        "numpy",
        "yaml",
        "random",
        "socket",
        "pickle",
        "pip",
        "runpy",
        "keras",
        "horovod",
    ):
        arena.file(f"{name}.py", MARK)
    for name in ("tl_dist", "multiprocessing", "PIL"):
        arena.file(f"{name}/__init__.py", MARK)
    arena.file("a.yaml", CONFIG)
    return arena


def test_poisoned_directory(case: Case, poisoned: Arena) -> None:
    poisoned.check(case)


@CASES.add("the command itself", code=0, says="num_examples: 24")
def _(arena: Arena) -> Sequence[str]:
    return "config", "show", "a.yaml"


@CASES.add("a pool that is forked from a server", code=0, says="4 examples")
def _(arena: Arena) -> Sequence[str]:
    for k in range(4):
        path = arena.file(f"set/{'ab'[k % 2]}/{k}.png")
        Image.new("RGB", (8, 8), (60 * k, 0, 0)).save(path)
    return "data", "verify", "set", "--workers", "2"


@CASES.add("workers", code=0, says="accuracy", worker=True, always=True)
def _(arena: Arena) -> Sequence[str]:
    return "train", "a.yaml"


@CASES.add("two workers", code=0, says="accuracy", worker=True)
def _(arena: Arena) -> Sequence[str]:
    return "train", "a.yaml", "--strategy=horovod", "-n2"


@CASES.add("the picture of augmentations", code=0, says="eight positions", worker=True)
def _(arena: Arena) -> Sequence[str]:
    return "augment", "preview", "a.yaml"


@CASES.add("the doctor", code=0, says="TensorFlow .*Keras", worker=True)
def _(arena: Arena) -> Sequence[str]:
    return ("doctor",)
