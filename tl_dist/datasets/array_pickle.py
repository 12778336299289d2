"""Reading a pickle of arrays and plain values, and of nothing else: no name in it is imported or called."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tl_dist.refusal import ExitCode, Refusal

_DTYPES = frozenset(
    f"{order}{kind}{size}" for order in ("", "|", "<") for kind in "iu" for size in (1, 2, 4, 8)
)

_NDARRAY = "numpy.ndarray"  # not the class itself, which a pickle could call with any shape and type


def load_array_pickle(path: Path) -> dict[str, Any]:
    """The dictionary pickled in `path` by Python 2 or 3: integer arrays, lists, dictionaries, numbers, text.

    Text that Python 2 wrote stays bytes, except that all keys are str. Refuses a pickle that asks for
    anything else (78) and one that is damaged or holds no dictionary (65).
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, path).load()
    except Refusal:
        raise
    # A damaged pickle can raise nearly anything, MemoryError included.
    except Exception as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise _damaged(path, f"it holds a {type(content).__name__}, not a dictionary")
    return {text_of(key): value for key, value in content.items()}


def text_of(value: Any) -> str:
    """What Python 2 or 3 pickled as text, as text."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the names that an array's pickle needs and refuses all others.

    The method is that of "Restricting Globals" in the manual of Python's pickle module. What a known name
    stands for is a method or a string, to which a pickle cannot attach anything.
    """

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="bytes")
        self._path = path
        self._known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): self._dtype,
            ("_codecs", "encode"): self._encode,
            **{(f"numpy.{core}.multiarray", "_reconstruct"): self._empty_array for core in ("core", "_core")},
        }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            self._refuse(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        self._refuse(f"the persistent object {pid!r}")

    def _dtype(self, name: str | bytes, *_flags: Any) -> np.dtype[Any]:
        # Only integers: an array of objects could hold anything.
        text = text_of(name)
        if text not in _DTYPES:
            self._refuse(f"an array of type {text!r}")
        return np.dtype(text)

    def _encode(self, text: str, encoding: str) -> bytes:
        # How Python 3 writes bytes in the protocols that Python 2 can read.
        if encoding != "latin1":
            self._refuse(f"the codec {encoding!r}")
        return text.encode("latin1")

    def _empty_array(self, kind: Any, _shape: Any, _typecode: Any) -> Any:
        # Shape and type come again together with the bytes, where they cannot claim more memory than these.
        if kind is not _NDARRAY:
            self._refuse(f"an array of class {kind!r}")
        return np.empty(0, np.int8)

    def _refuse(self, what: str) -> NoReturn:
        raise Refusal(
            f"{self._path} is a pickle that asks for {what}: it is not what it claims and could run code.",
            fix="obtain the file again from its publisher, or use the binary version of the dataset.",
            code=ExitCode.UNSAFE,
        )


def _damaged(path: Path, why: str) -> Refusal:
    return Refusal(
        f"{path} cannot be read as a pickle of arrays: {why}.",
        fix="obtain the file again from its publisher.",
        code=ExitCode.DATA,
    )
