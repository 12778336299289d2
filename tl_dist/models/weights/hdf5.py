"""Arrays from an HDF5 file that may be hostile (CVE-2026-0897, CVE-2026-1669, keras issues 22975, 22976).

Every array must be plain numbers, stored once in the file itself; all else is refused before a byte of it is read.
"""

from __future__ import annotations

import math
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_dist.files import limits
from tl_dist.refusal import ExitCode, Refusal

if TYPE_CHECKING:
    import numpy as np

_LISTS = re.compile(r"(layer|weight)_names\d*")
_SPARE_BYTES = 1 << 29


@dataclass
class Contents:
    """The content of a file: arrays, and lists of names by group. Paths have no leading slash."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    lists: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def names(self, group: str, kind: str) -> list[str] | None:
        """Return the list `kind` of a group, or None; Keras splits a long one into kind0, kind1, ..."""
        lists = self.lists.get(group, {})
        if kind in lists:
            return lists[kind]
        names: list[str] = []
        piece = 0
        while f"{kind}{piece}" in lists:
            names += lists[f"{kind}{piece}"]
            piece += 1
        return names if piece else None


class _UnsafeError(Exception):
    pass


def read(path: Path) -> Contents:
    """Return all numeric arrays of the file and Keras's lists of names.

    Refuses (78) links other than hard links, an object with two names, virtual, external, filtered, unwritten or
    oversized arrays, and types that are not numbers; and (65) a file that is not sound HDF5. On some such files HDF5's
    library loops forever: past `limits.HDF5_CPU_S` of CPU time this process ends by SIGVTALRM.
    """
    import h5py

    size = path.stat().st_size
    try:
        # HDF5's own lock fails on some network file systems. A driver named here keeps the file from choosing one.
        with (
            _bounded(limits.HDF5_CPU_S, 3 * size + _SPARE_BYTES),
            h5py.File(path, "r", driver="sec2", locking=False) as file,
        ):
            return _Walk(h5py, size).run(file)
    except _UnsafeError as problem:
        what = f"weights file {path.name} is refused: {problem}."
        fix = "use a file that Keras's save_weights wrote, from a source that you trust."
        raise Refusal(what, fix=fix, code=ExitCode.UNSAFE) from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, RecursionError) as error:
        what = f"weights file {path.name} cannot be read: {type(error).__name__}: {error}."
        raise Refusal(what, fix="obtain the file again.", code=ExitCode.DATA) from error


class _Walk:
    """One pass over the objects of a file."""

    def __init__(self, h5py: Any, size: int) -> None:
        self._h5py = h5py
        self._budget = size  # bytes of arrays that still fit in a file of this size
        self._seen: set[int] = set()
        self._contents = Contents()

    def run(self, file: Any) -> Contents:
        self._check_new(file, "")
        self._group(file, "", depth=0)
        return self._contents

    def _check_new(self, item: Any, path: str) -> None:
        address = self._h5py.h5o.get_info(item.id).addr
        if address in self._seen:
            raise _UnsafeError(f"'{path}' is there under two names")
        self._seen.add(address)
        if len(self._seen) > limits.HDF5_OBJECTS:
            raise _UnsafeError(f"it holds more than {limits.HDF5_OBJECTS} objects")
        self._attributes(item, path)

    def _group(self, group: Any, path: str, depth: int) -> None:
        if depth > limits.HDF5_DEPTH:
            raise _UnsafeError(f"'{path}' lies deeper than {limits.HDF5_DEPTH} groups")
        for name in _names(group, path):
            inner = f"{path}/{name}" if path else name
            if not isinstance(group.get(name, getlink=True), self._h5py.HardLink):
                raise _UnsafeError(f"'{inner}' is a link to another place")
            item = group[name]
            self._check_new(item, inner)
            if isinstance(item, self._h5py.Group):
                self._group(item, inner, depth + 1)
            elif isinstance(item, self._h5py.Dataset):
                self._contents.arrays[inner] = self._array(item, inner)
            else:
                raise _UnsafeError(f"'{inner}' is neither a group nor an array")

    def _array(self, dataset: Any, path: str) -> Any:
        # The layout first: asking a virtual array for its shape may open the files that it refers to.
        layout = dataset.id.get_create_plist()
        h5d = self._h5py.h5d
        is_inside = layout.get_layout() in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED)
        if not is_inside or layout.get_external_count():
            raise _UnsafeError(f"array '{path}' lies in other files")
        if layout.get_nfilters():
            raise _UnsafeError(f"array '{path}' is compressed or filtered")
        kind = dataset.id.get_type()
        if not isinstance(kind, self._h5py.h5t.TypeIntegerID | self._h5py.h5t.TypeFloatID):
            raise _UnsafeError(f"array '{path}' does not hold numbers")
        if dataset.shape is None or 0 in dataset.shape:
            raise _UnsafeError(f"array '{path}' is empty")
        num_bytes = math.prod(dataset.shape) * kind.get_size()
        self._budget -= num_bytes
        if self._budget < 0 or dataset.id.get_storage_size() < num_bytes:
            raise _UnsafeError(f"array '{path}' of shape {dataset.shape} is larger than what is stored of it")
        return dataset[()]

    def _attributes(self, item: Any, path: str) -> None:
        h5a, h5t = self._h5py.h5a, self._h5py.h5t
        plain = h5t.TypeIntegerID | h5t.TypeFloatID | h5t.TypeStringID | h5t.TypeEnumID
        if h5a.get_num_attrs(item.id) > limits.HDF5_NAMES:
            raise _UnsafeError(f"'{path}' has more than {limits.HDF5_NAMES} attributes")
        for name in _names(item.attrs, path):
            attribute = h5a.open(item.id, name.encode())
            if not isinstance(attribute.get_type(), plain):
                raise _UnsafeError(f"attribute '{name}' of '{path}' holds neither text nor numbers")
            if _LISTS.fullmatch(name):
                shape = attribute.shape or ()
                num_names = math.prod(shape)
                # An empty list has a numeric type, NumPy's default.
                if (
                    len(shape) != 1
                    or num_names > limits.HDF5_NAMES
                    or (num_names and not isinstance(attribute.get_type(), h5t.TypeStringID))
                ):
                    raise _UnsafeError(f"attribute '{name}' of '{path}' is no list of names")
                values = item.attrs[name] if num_names else ()
                names = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
                self._contents.lists.setdefault(path, {})[name] = names


def _names(owner: Any, path: str) -> Iterator[str]:
    """Yield the names of a group's members, or of attributes; refuse bytes that are not UTF-8, which HDF5 allows."""
    for name in owner:
        if isinstance(name, bytes):
            raise _UnsafeError(f"'{path}' holds {name[:40]!r}, which is no name in UTF-8")
        yield name


@contextmanager
def _bounded(cpu_s: float, num_bytes: int) -> Iterator[None]:
    """End this process after `cpu_s` of CPU time, since nothing else interrupts a library that never returns.

    It may also grow by no more than `num_bytes`, beyond which an allocation fails with an error: a list of names may
    refer to one long text many times, and the length of a text is known only once it is read.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit, statm = soft, Path("/proc/self/statm")
    if statm.exists():  # on Linux
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + num_bytes
        limit = limit if soft == resource.RLIM_INFINITY else min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
