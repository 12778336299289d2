"""No command and no process that it starts imports a module of the working directory."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from PIL import Image

from tests.hostile.arena import Arena, Case, Cases

CASES = Cases()

MARK = 'import os\nopen(os.path.join(os.environ["RAN"], __name__), "w").close()\nraise ImportError("hostile")\n'
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


PATHS = {"PYTHONPATH": "/somewhere", "LD_LIBRARY_PATH": "/somewhere", "PATH": os.environ["PATH"]}


@pytest.mark.parametrize("variable", PATHS)
@pytest.mark.parametrize("value", ["{}:", ":{}", "/nowhere::{}", ".:{}", "below:{}", "{}"])
def test_an_empty_or_relative_entry_of_a_path_does_not_reach_what_is_started(
    variable: str, value: str, poisoned: Arena
) -> None:
    """`export PYTHONPATH=$PYTHONPATH:/x` makes one. Python obeys it for the command itself, alone."""
    for name in ("nvidia-smi", "mpirun", "sbatch"):
        script = poisoned.file(name, f'#!/bin/sh\ntouch "$RAN/{name}"\n')
        script.chmod(0o755)
    code = (
        "import os, subprocess, sys\n"
        "from tl_dist.cli import main\n"
        f"os.environ[{variable!r}] = {value.format(PATHS[variable])!r}\n"
        "main._import_nothing_from_here()\n"
        f"print(os.environ[{variable!r}])\n"
        "subprocess.run([sys.executable, '-c', 'import random, yaml'], check=True)\n"
        "from tl_dist.tools.doctor.environment import collect; collect()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=poisoned.folder, env=poisoned.environment, text=True,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    entries = done.stdout.splitlines()[0].split(":")
    assert all(map(os.path.isabs, entries)) and PATHS[variable].split(":")[0] in entries
    assert os.listdir(poisoned.ran) == []


def test_a_module_that_a_relative_entry_leads_to_is_not_found(poisoned: Arena) -> None:
    poisoned.file("below/tl_shadow.py", MARK)
    done = poisoned.run(["train", "a.yaml", "data.name=tl_shadow:X"], seconds=60, environment={"PYTHONPATH": "below"})
    assert done.returncode == 64 and b"there is no module tl_shadow" in done.stderr, done
    assert os.listdir(poisoned.ran) == []


DRAW = """
import numpy as np
from tl_dist.tools.report import charts
from tl_dist.scores.pictures import confusion_picture, grid_picture
confusion_picture(np.eye(2, dtype=int), ["cat", "dog"])
grid_picture(np.zeros((1, 8, 8, 3), np.uint8), ["cat"])
charts.lines({"a": ([0, 1], [0, 1])}, x="x", y="y", what="a")
"""


def test_a_matplotlibrc_of_the_working_directory_makes_no_text_a_program(arena: Arena) -> None:
    """LaTeX would be given the preamble that stands there."""
    latex = arena.home / "bin" / "latex"
    latex.parent.mkdir()
    latex.write_text('#!/bin/sh\ntouch "$RAN/latex"\n')
    latex.chmod(0o755)
    arena.file("matplotlibrc", "text.usetex: True\ntext.latex.preamble: \\\\input{/etc/passwd}\n")
    environment = arena.environment | {"PATH": f"{latex.parent}:{os.environ['PATH']}"}
    argv = [sys.executable, "-P", "-c", DRAW]
    done = subprocess.run(argv, cwd=arena.folder, env=environment, capture_output=True, timeout=120, check=False)
    assert os.listdir(arena.ran) == []
    assert done.returncode == 0, done.stderr


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
