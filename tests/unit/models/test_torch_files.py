"""What torch.save writes is read bit for bit without torch, and whatever else a file holds is one line."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tl_dist.config import Config, rules
from tl_dist.models.weights import torch_files
from tl_dist.refusal import ExitCode, Refusal

NUMBERS = torch.arange(24.0).reshape(2, 3, 4)
TENSORS: dict[str, Any] = {
    **{str(kind): NUMBERS.to(kind) for kind in (torch.float32, torch.float64, torch.int64, torch.int32, torch.int16)},
    **{str(kind): NUMBERS.to(kind) for kind in (torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool)},
    "transposed": NUMBERS.transpose(0, 2),
    "part": NUMBERS[:, 1:, ::2],
    "shared": NUMBERS[1],
    "scalar": torch.tensor(5),
    "empty": torch.zeros(0, 3),
    "repeated": torch.ones(1).expand(5),
    "parameter": torch.nn.Parameter(NUMBERS),
}


class Code:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def refusal(path: Path) -> Refusal:
    with pytest.raises(Refusal) as caught:
        torch_files.read(path)
    assert "\n" not in str(caught.value) and " Fix: " in str(caught.value)
    return caught.value


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 5])
def test_tensors_are_those_of_torch(protocol: int, as_zip: bool, wrapper: str | None, tmp_path: Path) -> None:
    of_training = {"epoch": 3, "optimizer": {"state": {0: {"momentum": NUMBERS}}, "lr": [0.1]}}
    whole = TENSORS if wrapper is None else {**of_training, wrapper: TENSORS}
    file = tmp_path / "x.pth"
    torch.save(whole, file, pickle_protocol=protocol, _use_new_zipfile_serialization=as_zip)
    arrays = torch_files.read(file)
    assert arrays.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        wide = tensor.detach().float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.detach()
        assert arrays[name].dtype == wide.numpy().dtype
        np.testing.assert_array_equal(arrays[name], wide.numpy(), err_msg=name)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    torch.save(network.state_dict(), tmp_path / "x.pth")
    program = (
        "import sys; from pathlib import Path; from tl_dist.models.weights import torch_files; "
        "print(sorted(torch_files.read(Path(sys.argv[1])))); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "x.pth"], capture_output=True, text=True)
    assert done.stdout.strip() == str(sorted(network.state_dict())), done.stderr


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_is_refused_and_does_not_run(as_zip: bool, tmp_path: Path) -> None:
    file, mark = tmp_path / "x.pth", tmp_path / "ran"
    for content, name in (
        ({"weight": NUMBERS, "other": Code(mark)}, "posix.system"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"args": Path("x")}, "pathlib"),
    ):
        torch.save(content, file, _use_new_zipfile_serialization=as_zip)
        caught = refusal(file)
        assert caught.code == ExitCode.UNSAFE and f"holds more than tensors: {name}" in str(caught)
    assert not mark.exists()
    torch.save(Code(mark), file, _use_new_zipfile_serialization=as_zip)
    torch.load(file, weights_only=False)
    assert mark.exists()  # else nothing was proven


@pytest.mark.parametrize("as_zip", [True, False])
def test_half_a_download_is_refused_wherever_it_ends(as_zip: bool, tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save({"weight": NUMBERS}, file, _use_new_zipfile_serialization=as_zip)
    content = file.read_bytes()
    for end in (0, 1, 3, 10, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:end])
        assert refusal(file).code == ExitCode.DATA


def in_zip(old: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        assert not name.endswith("data.pkl") or content.count(old) == 1
        return content.replace(old, new) if name.endswith("data.pkl") else content

    return change


MINUS_ONE = b"J\xff\xff\xff\xff"
# BININT1 of the shape, the strides, and the size of the storage
SHAPE, STRIDES, SIZE = b"K\x02K\x03K\x04", b"K\x0cK\x04K\x01", b"K\x18t"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (in_zip(SHAPE, b"K\x02K\x03K\x05"), "lies outside of its storage"),
        (in_zip(SHAPE, b"K\x02K\x03" + MINUS_ONE), "lies outside of its storage"),
        (in_zip(SHAPE, b"K\x02K\x03J\xff\xff\xff\x7f"), "more numbers than its"),
        (in_zip(STRIDES, b"K\x0cK\x04" + MINUS_ONE), "lies outside of its storage"),
        (in_zip(STRIDES, b"K\x0cK\x04K\x02"), "lies outside of its storage"),
        (in_zip(SIZE, MINUS_ONE + b"t"), "lies outside of its storage"),
        (in_zip(SIZE, b"K\x19t"), "buffer is smaller"),
        (lambda name, content: b"big" if name.endswith("byteorder") else content, "begin with the highest byte"),
        (lambda name, content: content[:-4] if name.endswith("data/0") else content, "buffer is smaller"),
    ],
)
def test_a_description_that_lies_is_refused(change: Callable[[str, bytes], bytes], why: str, tmp_path: Path) -> None:
    assert why in altered({"weight": NUMBERS}, change, tmp_path)


def test_a_negative_size_hides_no_size_that_is_too_large(tmp_path: Path) -> None:
    one = torch.ones(1, dtype=torch.float16)
    minus_1000 = in_zip(b"M\xd0\x07", b"J\x18\xfc\xff\xff")
    why = altered({"a": one.expand(1000, 1000), "b": one.expand(1000, 2000)}, minus_1000, tmp_path)
    assert "more numbers than its" in why


def altered(tensors: dict[str, Any], change: Callable[[str, bytes], bytes], tmp_path: Path) -> str:
    torch.save(tensors, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as whole, zipfile.ZipFile(tmp_path / "y.pth", "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, change(name, whole.read(name)))
    return str(refusal(tmp_path / "y.pth"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "torch.save has not written it"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "no description of tensors"),  # Python would make a list of as many objects
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00abc.", "only 4 remain"),  # and an array of as many zeros
    ],
)
def test_other_files_are_refused(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    assert why in str(refusal(tmp_path / "x.pth"))


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("x/data.pkl", bytes(1 << 24))
    assert refusal(tmp_path / "x.pth").code == ExitCode.DATA


def test_a_network_without_torch_s_names_takes_no_such_file() -> None:
    model = {"backbone": "vgg16", "weights": "x.pth"}
    config = {"name": "x", "epochs": 1, "model": model, "data": {"name": "digits"}, "optimizer": {"learning_rate": 1.0}}
    (broken,) = rules.broken(Config.model_validate(config))
    assert "vgg16 takes no weights of torch" in broken.what and ".safetensors, .h5 or .keras" in broken.fix
