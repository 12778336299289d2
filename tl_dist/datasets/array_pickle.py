"""Read a pickle of arrays and plain values, and nothing else: no name in it is imported or called."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tl_dist.datasets.files import bytes_in, unusable
from tl_dist.files import limits
from tl_dist.refusal import ExitCode, Refusal

_DTYPES = frozenset(
    f"{order}{kind}{size}" for order in ("", "|", "<") for kind in "iu" for size in (1, 2, 4, 8)
)

_NDARRAY = "numpy.ndarray"  # not the class, which a pickle could call with any shape and type

_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
_CONTAINERS = _TUPLES | {
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "BUILD")
}
_PUTS, _GETS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"}), frozenset({"GET", "BINGET", "LONG_BINGET"})
_OPCODES = frozenset(
    {
        *(_CONTAINERS | _PUTS | _GETS),
        *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "EMPTY_TUPLE"),
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG1", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    }
)


def load_array_pickle(path: Path) -> dict[str, Any]:
    """Load a dictionary pickled by Python 2 or 3: integer arrays, lists, dictionaries, numbers, text.

    Text from Python 2 stays bytes, except that all keys are str. Refuses a pickle that needs anything else (78), and
    one that is damaged or holds no dictionary (65).
    """
    data = bytes_in(path, limits.CIFAR_FILE)
    try:
        _check_opcodes(data, path)
        content = _ArrayUnpickler(data, path).load()
    except Refusal:
        raise
    # A damaged pickle can raise nearly anything, MemoryError included.
    except Exception as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise _damaged(path, f"it holds a {type(content).__name__}, not a dictionary")
    if not all(isinstance(key, str | bytes) for key in content):
        raise _damaged(path, "its keys are not text")
    return {text_of(key): value for key, value in content.items()}


def text_of(value: str | bytes) -> str:
    """Return text that Python 2 or 3 pickled as str."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def _check_opcodes(data: bytes, path: Path) -> None:
    """Refuse opcodes that a pickle of arrays does not need, before it is loaded.

    Otherwise some 200 bytes can keep a process busy forever: nested tuples that hold each other twice, as a key, whose
    hash takes 2**60 steps. So a list, tuple or dictionary may be used only once, and tuples other than arguments of a
    call are few. Numbers of more than 64 bits could be chosen to have equal hashes.
    """
    before, num_memoized, num_tuples = "", 0, 0
    memo: dict[Any, str] = {}  # by index, the opcode that created the object
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        if name not in _OPCODES or count > limits.PICKLE_OPCODES:
            _refuse(path, f"the opcode {name}" if name not in _OPCODES else f"more than {count:,} opcodes")
        if isinstance(argument, int) and not -(2**63) <= argument < 2**63:
            _refuse(path, "a number of more than 64 bits")
        if name in _PUTS or name == "MEMOIZE":
            index = num_memoized if argument is None else argument
            if index > limits.PICKLE_OPCODES:
                _refuse(path, f"a memory of {index:,} places")
            num_memoized += index not in memo
            memo[index] = before
            continue
        if name in _GETS and memo.get(argument) in _CONTAINERS:
            _refuse(path, "one container in two places")
        num_tuples += before in _TUPLES and name not in ("REDUCE", "BUILD")
        if num_tuples > limits.PICKLE_TUPLES:
            _refuse(path, f"more than {limits.PICKLE_TUPLES} tuples")
        if name not in ("FRAME", "PROTO"):  # which leave the stack alone
            before = name


class _ArrayUnpickler(pickle.Unpickler):
    """Resolve only the names that an array's pickle needs.

    This follows "Restricting Globals" in the documentation of pickle. A name resolves to a method or a string, to which
    a pickle cannot attach anything.
    """

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._path = path
        self._to_encode = len(data)
        self._known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): self._dtype,
            ("_codecs", "encode"): self._encode,
            **{(f"numpy.{core}.multiarray", "_reconstruct"): self._empty_array for core in ("core", "_core")},
        }

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a known name; refuses (78) any other."""
        try:
            return self._known[module, name]
        except KeyError:
            _refuse(self._path, f"{module}.{name}")

    def _dtype(self, name: str | bytes, *_flags: Any) -> np.dtype[Any]:
        # Integers only: an array of objects could hold anything.
        text = text_of(name)
        if text not in _DTYPES:
            _refuse(self._path, f"an array of type {text!r}")
        return np.dtype(text)

    def _encode(self, text: str, encoding: str) -> bytes:
        # Python 3 pickles bytes as such a call in the protocols that Python 2 can read.
        if encoding != "latin1":
            _refuse(self._path, f"the codec {encoding!r}")
        self._to_encode -= len(text)
        if self._to_encode < 0:  # each text occurs once
            _refuse(self._path, "more text than it has")
        return text.encode("latin1")

    def _empty_array(self, kind: Any, _shape: Any, _typecode: Any) -> Any:
        # BUILD sets shape and type together with the bytes, so that they cannot claim more memory than these.
        if kind is not _NDARRAY:
            _refuse(self._path, "an array of another class")
        return np.empty(0, np.int8)


def _refuse(path: Path, what: str) -> NoReturn:
    raise Refusal(
        f"{path} is a pickle that asks for {what}: it is not what it claims and could do harm.",
        fix="obtain the file again from its publisher, or use the binary version of the dataset.",
        code=ExitCode.UNSAFE,
    )


def _damaged(path: Path, why: str) -> Refusal:
    return unusable(
        f"{path} cannot be read as a pickle of arrays: {why}", "obtain the file again from its publisher"
    )
