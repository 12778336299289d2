"""No code in a file of weights runs, and what it unpacks to stays where it belongs; by `tl-dist prepare`."""

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import keras
import pytest
import torch

from tests.hostile.arena import Arena, Case, Cases
from tl_dist.config import registry

# Keras's own way to write a variable to a file.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

CASES = Cases()


def model_with_code(path: Path) -> None:
    """A model whose file runs a lambda in whoever builds it."""
    code = keras.layers.Lambda(lambda x: [x, __import__("os").system('[ -z "$RAN" ] || touch "$RAN/lambda"')][0])
    tiny = registry.backbone("tiny").build((32, 32, 3))
    keras.Sequential([keras.Input((32, 32, 3)), code, tiny, keras.layers.Flatten()]).save(path)


def never_read(path: Path) -> None:
    """Found by fuzzing: the space that is free in its heap of texts is of a size that cannot be."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["dense"]
    content = path.read_bytes()
    free = content.index(b"GCOL") + 16 + 24 + 8  # behind the heap's head, the one text, and what tells that it is free
    assert content[free : free + 8] == (4096 - 16 - 24).to_bytes(8, "little")
    path.write_bytes(content[:free] + (256).to_bytes(8, "little") + content[free + 8 :])


class Code:
    """What a pickle calls."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ('[ -z "$RAN" ] || touch "$RAN/pickle"',)


def prepare(arena: Arena, name: str, backbone: str = "tiny") -> Sequence[str]:
    model = f"{{backbone: {backbone}, weights: {name}, train_from: all}}"
    arena.file("x.yaml", f"steps: 1\ndata: {{name: synthetic}}\nmodel: {model}\noptimizer: {{learning_rate: 1}}\n")
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


@CASES.add("code of a .pth file", code=78, says="holds more than tensors: posix.system", worker=True, always=True)
def _(arena: Arena) -> Sequence[str]:
    torch.save({"conv_stem.weight": Code()}, arena.folder / "x.pth")
    return prepare(arena, "x.pth", "efficientnet_lite0")


@CASES.add("an .h5 file that its library reads for ever", code=78, says="busy for 30 s", worker=True)
def _(arena: Arena) -> Sequence[str]:
    never_read(arena.folder / "x.h5")
    return prepare(arena, "x.h5")


@CASES.add("a checkpoint of noise", code=65, says="cannot be read", worker=True)
def _(arena: Arena) -> Sequence[str]:
    arena.file("x.index", os.urandom(5000))
    arena.file("x.data-00000-of-00001", os.urandom(5000))
    return prepare(arena, "x.index")


def test_command(case: Case, arena: Arena) -> None:
    arena.check(case)


def test_a_process_reads_no_longer_than_it_may(tmp_path: Path) -> None:
    never_read(tmp_path / "x.h5")
    program = (
        "import sys; from pathlib import Path; from tl_dist.files import limits; limits.HDF5_CPU_S = 0.5; "
        "from tl_dist.models.weights import hdf5; hdf5.read(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program, tmp_path / "x.h5"], timeout=60, check=False)
    assert done.returncode == -signal.SIGVTALRM


def test_the_code_would_run_in_keras_and_torch(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the cases above would prove nothing."""
    model_with_code(arena.folder / "x.keras")
    monkeypatch.setenv("RAN", str(arena.ran))
    keras.models.load_model(arena.folder / "x.keras", safe_mode=False)
    torch.save(Code(), arena.folder / "x.pth")
    torch.load(arena.folder / "x.pth", weights_only=False)
    assert sorted(os.listdir(arena.ran)) == ["lambda", "pickle"]
