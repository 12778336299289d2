"""Write and verify one checkpoint: a directory with tensors (safetensors), facts (JSON) and a manifest of both.

Arrays are written in the layout of https://github.com/huggingface/safetensors#format, and read by that library.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tl_dist.files import limits
from tl_dist.files.atomic import Written, fsync_directory, open_directory, reason, write_file
from tl_dist.files.failpoint import failpoint
from tl_dist.files.foreign import open_regular, read_file
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import shape as shapes

TENSORS, META, MANIFEST = FILES = "state.safetensors", "meta.json", "MANIFEST.json"
FORMAT = 1
NEEDS = "needs"
"""key of the facts: steps whose checkpoints must be kept as long as this one is, the best first"""
BEST = "best"
"""name of the checkpoint that a run ends with, if it is not simply a step's: averaged weights, settled statistics"""

_NAMES = {
    "bool": "BOOL",
    **{f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_MOST_PROBLEMS = 5  # in a message
_AT_ONCE = 1 << 20  # numbers checked at a time, so that their flags stay in the processor's cache

Expected = Mapping[str, tuple[str, tuple[int, ...]]]


class Invalid(Exception):
    """A directory that is not a whole checkpoint; `str()` says why."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps, read back and verified."""

    step: int
    path: Path
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    sha256: str = ""
    """digest of all arrays; figures stored elsewhere refer to the checkpoint by it"""


@dataclass(frozen=True)
class Content:
    """The content of a checkpoint to write, checked and laid out; array data is not copied."""

    step: int
    header: bytes
    arrays: dict[str, np.ndarray]
    meta: bytes
    needs: tuple[int, ...]

    @classmethod
    def of(cls, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Content:
        """Lay out a checkpoint. Raises ValueError for values that cannot be written and read back unchanged."""
        contiguous = {path: _contiguous(path, array) for path, array in arrays.items()}
        entries, offset = {}, 0
        for path, array in contiguous.items():
            end = offset + array.nbytes
            dtype = _NAMES[array.dtype.name]
            entries[path] = {"dtype": dtype, "shape": array.shape, "data_offsets": (offset, end)}
            offset = end
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
        facts = json.dumps(meta, indent=1, sort_keys=True, allow_nan=False).encode()
        if len(header) > limits.CHECKPOINT_HEADER or len(facts) > limits.CHECKPOINT_META:
            raise ValueError(f"a checkpoint of {len(arrays)} arrays with {len(facts)} bytes of facts is too large")
        return cls(step, header, contiguous, facts, tuple(meta.get(NEEDS, ())))

    def pieces(self) -> Iterator[Any]:
        """Yield the safetensors file: length of the header, header, tensors."""
        yield len(self.header).to_bytes(8, "little") + self.header
        for array in self.arrays.values():
            yield array.reshape(-1).view(np.uint8)
            failpoint("checkpoint.tensors")


def write(directory: Path, content: Content) -> int:
    """Write `directory` and everything in it durably, the manifest last; return the bytes written."""
    os.mkdir(directory, 0o700)
    failpoint("checkpoint.temp_made", directory)
    files = {
        TENSORS: write_file(directory / TENSORS, content.pieces()),
        META: write_file(directory / META, [content.meta]),
    }
    failpoint("checkpoint.files_done", directory)
    manifest = _manifest(content.step, files)
    files[MANIFEST] = write_file(directory / MANIFEST, _halves(manifest))
    failpoint("checkpoint.manifest_done", directory)
    fsync_directory(directory)
    return sum(file.size for file in files.values())


def read(path: Path, step: int, expected: Expected | None = None) -> Checkpoint:
    """Read the checkpoint in a directory, and verify every byte; raise Invalid, also for NaN and infinity in it.

    With `expected`, to resume from it: raises Refusal if its set of (path, dtype, shape) differs.
    """
    with _verified(path, step) as (tensors, meta, sha256):
        held = _held(tensors)
        if expected is not None:
            _compare(path, held, expected)
            if not isinstance(meta.get("history"), dict):
                raise Invalid(f"{META} has no history")
            if wrong := shapes.fault(meta["history"], shapes.History):
                raise Invalid(f"the history in {META} is damaged ({wrong})")
        return Checkpoint(step, path, meta, dict(_finite(tensors, held)), sha256)


def check(path: Path, step: int) -> None:
    """Verify a checkpoint as `read` does, without keeping it; raise Invalid."""
    with _verified(path, step) as (tensors, _, _):
        for _ in _finite(tensors, _held(tensors)):
            pass


def require_finite(path: str, array: np.ndarray) -> None:
    """Raise Invalid for NaN and infinity, which no state may hold. Takes a twentieth of the time of hashing."""
    if "float" not in array.dtype.name:
        return
    flat = array.reshape(-1)
    if not all(np.isfinite(flat[k : k + _AT_ONCE]).all() for k in range(0, flat.size, _AT_ONCE)):
        raise Invalid(f"'{path}' holds numbers that are not finite")


def needed_by(path: Path) -> list[int]:
    """Return the steps of other checkpoints that the facts of this one name as needed; none if unreadable."""
    with suppress(OSError, Invalid), open_directory(path) as fd:
        steps = _object(META, read_file(META, max_bytes=limits.CHECKPOINT_META, dir_fd=fd)).get(NEEDS, [])
        return [step for step in steps if isinstance(step, int)] if isinstance(steps, list) else []
    return []


def is_plausible(path: Path, step: int) -> bool:
    """Return True if the manifest and the sizes of the files agree; cheap, but does not notice changed bytes."""
    with suppress(OSError, Invalid), open_directory(path) as fd:
        listed = _listed(read_file(MANIFEST, max_bytes=limits.CHECKPOINT_MANIFEST, dir_fd=fd))
        sizes = {name: os.stat(name, dir_fd=fd, follow_symlinks=False).st_size for name in (TENSORS, META)}
        return all(listed[name].size == size for name, size in sizes.items())
    return False


def _finite(tensors: int, held: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    # By descriptor, so that this is the file that was verified; read, not mapped into memory, so that a
    # file that shrinks meanwhile is an error and not a SIGBUS.
    with safe_open(f"/proc/self/fd/{tensors}", framework="np", backend="pread") as file:
        for name in held:
            array = file.get_tensor(name)
            require_finite(name, array)
            yield name, array


def _contiguous(path: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if path == "__metadata__" or array.dtype.name not in _NAMES:
        raise ValueError(f"'{path}' of type {array.dtype} cannot be kept in a safetensors file")
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return array if array.flags.c_contiguous else array.copy(order="C")


def _manifest(step: int, files: Mapping[str, Written]) -> bytes:
    facts = {name: {"sha256": file.sha256, "size": file.size} for name, file in sorted(files.items())}
    return json.dumps({"files": facts, "format": FORMAT, "step": step}, indent=1).encode()


def _halves(manifest: bytes) -> Iterator[bytes]:
    yield manifest[: len(manifest) // 2]
    failpoint("checkpoint.manifest_mid")
    yield manifest[len(manifest) // 2 :]


@contextmanager
def _verified(path: Path, step: int) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yield, of a valid checkpoint, an open descriptor of the tensors, the facts, and the digest of the tensors.

    Rebuilds the manifest from what was read: no part of it, not even a blank, can have changed unnoticed.
    """
    tensors = -1
    try:
        with open_directory(path) as fd:
            manifest = read_file(MANIFEST, max_bytes=limits.CHECKPOINT_MANIFEST, dir_fd=fd)
            listed = _listed(manifest)
            tensors = open_regular(TENSORS, dir_fd=fd)
            meta = read_file(META, max_bytes=limits.CHECKPOINT_META, dir_fd=fd)
            files = {
                TENSORS: _digest(tensors, listed[TENSORS].size),
                META: Written(len(meta), hashlib.sha256(meta).hexdigest()),
            }
            for name, file in files.items():
                if file.size != listed[name].size:
                    raise Invalid(f"{name} has {file.size} bytes instead of {listed[name].size}")
                if file != listed[name]:
                    raise Invalid(f"{name} is damaged: its sha256 is not the one in {MANIFEST}")
            if manifest != _manifest(step, files):
                raise Invalid(f"{MANIFEST} is damaged or of another step")
            facts = _object(META, meta)
        yield tensors, facts, files[TENSORS].sha256
    except FileNotFoundError as error:
        raise Invalid(f"{error.filename or path.name} is missing") from error
    except (OSError, SafetensorError) as error:
        raise Invalid(reason(error)) from error
    finally:
        if tensors >= 0:
            os.close(tensors)


def _listed(manifest: bytes) -> dict[str, Written]:
    facts = _object(MANIFEST, manifest)
    if facts.get("format") != FORMAT:
        raise Invalid(f"{MANIFEST} has format {facts.get('format')!r}, this version reads {FORMAT}")
    try:
        files = {name: Written(**facts["files"][name]) for name in (TENSORS, META)}
    except (KeyError, TypeError):
        files = {}
    if not files or not all(type(file.size) is int and type(file.sha256) is str for file in files.values()):
        raise Invalid(f"{MANIFEST} does not list {TENSORS} and {META}")
    return files


def _digest(fd: int, size: int) -> Written:
    """Return a file's size and digest; without the digest, unread, if the size is not `size`."""
    actual = os.fstat(fd).st_size
    if actual != size:
        return Written(actual, "")
    with open(fd, "rb", buffering=0, closefd=False) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(file.tell(), digest)


def _held(fd: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type and shape of every tensor by the file's header; the library checks the offsets."""
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if length > limits.CHECKPOINT_HEADER:
        raise Invalid(f"the header of {TENSORS} claims {length} bytes")
    entries = _object(TENSORS, os.pread(fd, length, 8))
    entries.pop("__metadata__", None)
    try:
        return {path: (_DTYPES[entry["dtype"]], tuple(entry["shape"])) for path, entry in entries.items()}
    except (KeyError, TypeError, AttributeError):
        raise Invalid(f"the header of {TENSORS} is malformed") from None


def _object(name: str, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise Invalid(f"{name} names something twice")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Invalid(f"{name} is not a JSON object")
    return value


def _compare(path: Path, held: Expected, expected: Expected) -> None:
    problems = [f"no '{name}'" for name in expected if name not in held]
    problems += [f"unexpected '{name}'" for name in held if name not in expected]
    for name, (dtype, shape) in expected.items():
        if name in held and held[name] != (dtype, tuple(shape)):
            was = f"{held[name][0]} {list(held[name][1])}"
            problems.append(f"'{name}' is {was} instead of {dtype} {list(shape)}")
    if problems:
        more = f" and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        what = f"{path} does not fit the model and optimizer: {', '.join(problems[:_MOST_PROBLEMS])}{more}."
        fix = "go back to the model and optimizer that the run started with, or use another name=NAME."
        raise Refusal(what, fix=fix, code=ExitCode.UNSAFE)
