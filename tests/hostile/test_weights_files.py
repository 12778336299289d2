"""No code in a file of weights runs, and what it unpacks to stays where it belongs; by `tl-dist prepare`."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras
import pytest

from tests.hostile.arena import Arena, Case, Cases
from tl_dist.config import registry

# Keras's own way to write a variable to a file.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

CASES = Cases()


def model_with_code(path: Path) -> None:
    """A model whose file runs a lambda in whoever builds it."""
    code = keras.layers.Lambda(
        lambda x: [x, __import__("os").system('[ -z "$RAN" ] || touch "$RAN/lambda"')][0]
    )
    tiny = registry.backbone("tiny").build((32, 32, 3))
    keras.Sequential([keras.Input((32, 32, 3)), code, tiny, keras.layers.Flatten()]).save(path)


def prepare(arena: Arena, name: str) -> Sequence[str]:
    model = f"{{backbone: tiny, weights: {name}, train_from: all}}"
    arena.file(
        "x.yaml", f"steps: 1\ndata: {{name: synthetic}}\nmodel: {model}\noptimizer: {{learning_rate: 1}}\n"
    )
    return ["prepare", "x.yaml"]


@CASES.add("code of a .keras file", code=0, says="ready: ", worker=True, always=True)
def _(arena: Arena) -> Sequence[str]:
    model_with_code(arena.folder / "x.keras")
    return prepare(arena, "x.keras")


@CASES.add("code of an .h5 file", code=0, says="ready: ", worker=True)
def _(arena: Arena) -> Sequence[str]:
    model_with_code(arena.folder / "x.h5")
    return prepare(arena, "x.h5")


@CASES.add("a .keras file that unpacks beside itself", code=78, says="leaves its directory", worker=True)
def _(arena: Arena) -> Sequence[str]:
    model_with_code(arena.folder / "x.keras")
    with zipfile.ZipFile(arena.folder / "x.keras", "a") as archive:
        archive.writestr("../../outside/thesis.tex", "nothing")
    return prepare(arena, "x.keras")


@CASES.add("a .keras file that is a bomb", code=78, says="neither compressed nor encrypted", worker=True)
def _(arena: Arena) -> Sequence[str]:
    with zipfile.ZipFile(arena.folder / "x.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(1 << 30))
    return prepare(arena, "x.keras")


@CASES.add("a checkpoint of noise", code=65, says="cannot be read", worker=True)
def _(arena: Arena) -> Sequence[str]:
    arena.file("x.index", os.urandom(5000))
    arena.file("x.data-00000-of-00001", os.urandom(5000))
    return prepare(arena, "x.index")


def test_command(case: Case, arena: Arena) -> None:
    arena.check(case)


def test_the_code_would_run_in_keras(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the cases above would prove nothing."""
    model_with_code(arena.folder / "x.keras")
    monkeypatch.setenv("RAN", str(arena.ran))
    keras.models.load_model(arena.folder / "x.keras", safe_mode=False)
    assert os.listdir(arena.ran) == ["lambda"]
