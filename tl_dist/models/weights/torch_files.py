"""Tensors from what `torch.save` writes, a zip archive or torch's older form, without torch, and running no code in it.

A pickle names the functions that make its objects. Here it gets those of tensors alone, in whose place it makes
descriptions, and any other name is refused.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tl_dist.files import limits
from tl_dist.files.packages import check_members
from tl_dist.refusal import ExitCode, Refusal

_MAGIC = 0x1950A86A20F9469CFC6C  # with which the older form begins
_DTYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip
_WRAPPERS = ("state_dict", "model", "model_state_dict")
"""keys under which a checkpoint holds the network, beside the state of training"""


class _CodeError(Exception):
    """A pickle asks for something that no tensor needs."""


class _Storage(NamedTuple):
    dtype: str
    key: str
    size: int  # numbers in it


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # this and strides count numbers, not bytes
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Makes descriptions; `storages` has those of all numbers by key."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name; raises _CodeError for any but the names of tensors."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        makers: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _Tensor(*arguments[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda *arguments: arguments[0],
        }
        if (module, name) not in makers:
            raise _CodeError(f"{module}.{name}"[:200])
        return makers[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the description of a storage; raises ValueError for a view of one, which torch wrote long ago."""
        kind, dtype, key, _, size, *view = pid
        storage = _Storage(dtype, key, size)
        if kind != "storage" or any(view) or self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"its storage {key!r} is described in an unknown way")
        return storage


def read(path: Path) -> dict[str, Any]:
    """Return the tensors of a file by name, those of 16 bits as float32.

    Refuses (78) a pickle that could run code, and (65) a file that cannot be read.
    """
    import ml_dtypes  # noqa: F401 (it adds bfloat16 to numpy's types)

    content = path.read_bytes()
    try:
        if not content.startswith((b"PK", b"\x80")):
            raise ValueError("torch.save has not written it")
        described, numbers = (_of_zip if content.startswith(b"PK") else _of_stream)(content)
        for key in _WRAPPERS:
            if isinstance(described, dict) and isinstance(described.get(key), dict):
                described = described[key]
        entries = described if isinstance(described, dict) else {}
        tensors = {str(name): tensor for name, tensor in entries.items() if isinstance(tensor, _Tensor)}
        if not tensors:
            raise ValueError("it holds no dictionary of tensors")
        # A stride of 0 repeats a number for nothing, and any number of tensors may share a storage. Neither a negative
        # size nor one that is no number may hide it.
        if not sum(abs(math.prod(tensor.shape)) for tensor in tensors.values()) <= len(content):
            raise ValueError(f"its tensors have more numbers than its {len(content):,} bytes can hold")
        return {name: _array(name, tensor, numbers) for name, tensor in tensors.items()}
    except _CodeError as error:
        what = f"weights file {path.name} holds more than tensors: {error}, which could run code."
        fix = "save the network's state_dict alone, best as .safetensors, and use no file that you do not trust."
        raise Refusal(what, fix=fix, code=ExitCode.UNSAFE) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        what = f"weights file {path.name} cannot be read: {str(error) or type(error).__name__}."
        fix = "obtain the whole file again, as torch.save writes it."
        raise Refusal(what, fix=fix, code=ExitCode.DATA) from error


def _unpickled(content: bytes, start: int = 0) -> tuple[Any, int, dict[str, _Storage]]:
    """Return the object of the pickle at `start`, where the pickle ends, and the storages that it describes."""
    file = io.BytesIO(content)
    file.seek(start)
    for opcode, argument, _ in pickletools.genops(file):
        size = file.tell() - start
        # Python makes its list of objects as long as the highest number that one of them is given.
        if size > limits.TORCH_PICKLE or (opcode.name.endswith("PUT") and int(argument or 0) > size):
            raise ValueError(f"it is no description of tensors of at most {limits.TORCH_PICKLE:,} bytes")
    unpickler = _Unpickler(io.BytesIO(content[start : file.tell()]))
    return unpickler.load(), file.tell(), unpickler.storages


def _of_zip(content: bytes) -> tuple[Any, Callable[[str], Any]]:
    """Return the object in a zip archive, and what returns the bytes of a storage."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    members = archive.infolist()
    check_members(members, len(content))
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
        raise ValueError("it is compressed or encrypted, which torch.save does not do")
    root = next((name[:-8] for name in archive.namelist() if name.endswith("/data.pkl")), "")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers begin with the highest byte")
    described, _, _ = _unpickled(archive.read(f"{root}data.pkl"))
    return described, cache(lambda key: archive.read(f"{root}data/{key}"))


def _of_stream(content: bytes) -> tuple[Any, Callable[[str], Any]]:
    """Return the object of the older form, pickles in front of all numbers, and what returns the bytes of a storage."""
    import numpy as np

    magic, place, _ = _unpickled(content)
    _, place, _ = _unpickled(content, place)
    system, place, _ = _unpickled(content, place)
    if magic != _MAGIC or not system["little_endian"]:
        raise ValueError("it is not what torch.save writes on a machine of today")
    described, place, storages = _unpickled(content, place)
    keys, place, _ = _unpickled(content, place)
    numbers = {}
    for key in keys:
        size = storages[key].size * np.dtype(storages[key].dtype).itemsize
        numbers[key] = memoryview(content)[place + 8 : place + 8 + size]  # behind the number of numbers
        place += 8 + size
    return described, numbers.__getitem__


def _array(name: str, tensor: _Tensor, numbers: Callable[[str], Any]) -> Any:
    """Return a tensor as an array; raises ValueError for one that lies outside of its storage."""
    import numpy as np

    (dtype, key, size), offset, shape, strides = tensor
    stored = np.frombuffer(numbers(key), dtype, size)
    last = offset + sum((num - 1) * step for num, step in zip(shape, strides, strict=True))
    if min((offset, size, *shape, *strides)) < 0 or (math.prod(shape) > 0 and last >= size):
        raise ValueError(f"its '{name}' lies outside of its storage")
    steps = [step * stored.itemsize for step in strides]
    array = np.lib.stride_tricks.as_strided(stored[offset:], shape, steps)
    return array.astype(np.float32) if dtype in ("<f2", "bfloat16") else array
