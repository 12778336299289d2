"""What lies in the folders of a data set, and how large it is: looked at once, and then while nothing has changed.

A thousand workers that each ask for the sizes of a million files take hours of a file server. Within `kept` the folders
come from a file that the first worker has written: whoever reads it asks for the times of the folders alone. That a
file has been changed in its place, which no folder shows, is seen by `quarantine.screen`.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import zipfile
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tl_dist.datasets.annotations import packed_text, unpacked_text
from tl_dist.files import limits
from tl_dist.files.atomic import open_directory, write_atomically
from tl_dist.files.foreign import read_file
from tl_dist.files.npz import read_npz
from tl_dist.files.private import make_private, refuse_unsafe

FILE, FOLDER, GONE = range(3)
"""kinds of entries; GONE is a link that leads nowhere"""

SETTLED_S = 10.0
"""A folder that changed so short a time before it was listed may have changed once more in the same tick of its clock,
which is up to two seconds on some file servers: it is not believed to be as it was."""

_SCHEMA = 1  # raise it when what is kept means something else
_THREADS = 16  # a listing waits for the file server more than it computes
_UNSETTLED = (0, 0, 0)

_Stamp = tuple[int, int, int]  # inode, and both times: archives and rsync set the first one back


@dataclass(frozen=True)
class Folder:
    """The entries of one folder, in no order; links have the kind and size of what they lead to."""

    identity: tuple[int, int]
    """the same for two paths of one folder"""
    names: Sequence[str]
    kinds: bytes
    sizes: Sequence[int]
    """bytes; 0 of what is no file"""

    def entries(self) -> Iterator[tuple[str, int, int]]:
        """(name, kind, size) of each."""
        return zip(self.names, self.kinds, self.sizes, strict=True)


_Known = dict[str, tuple[_Stamp, Folder]]  # by path


def folder(path: Path) -> Folder:
    """What is in a folder, or behind a link to one; OSError where that cannot be said."""
    current = _current.get()
    name = os.fspath(path)
    return _scanned(name)[1] if current is None else current.folder(name)


def sizes_in(wanted: Mapping[str, Collection[str]]) -> dict[str, dict[str, int]]:
    """By folder the bytes of these files in it, of many more perhaps; without those that cannot be asked."""
    current = _current.get() or _Listings(dict)
    # With a slash at its end a folder is kept beside itself, with the files alone that were asked for.
    found = current.some_of({os.path.join(path, ""): names for path, names in wanted.items()})
    return {
        path: dict(zip(listed.names, listed.sizes, strict=True))
        for path, listed in zip(wanted, found, strict=True)
    }


def look_at(paths: Sequence[Path]) -> None:
    """Look at many that will be asked for, at once: from a file server each answer takes its time."""
    current = _current.get()
    if current is None:
        return

    def look(path: str) -> None:
        with suppress(OSError):  # for whoever asks for it
            current.folder(path)

    _ = current.before  # not by several threads
    with ThreadPoolExecutor(_THREADS) as pool:
        deque(pool.map(look, map(os.fspath, paths)), maxlen=0)


@contextmanager
def once() -> Iterator[None]:
    """Within it no folder is looked at twice."""
    token = _current.set(_current.get() or _Listings(dict))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def kept(
    cache: Path, root: str, *, writes: bool, anew: bool = False, begin: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Within it the folders of the data set at `root` come from the directory `cache`, where they are as they were.

    `writes`: what is not there is added; only one worker does. With `anew` nothing that is there is believed. `begin`
    is called before the first look at it.
    """
    refuse_unsafe(cache, links=True)
    name = hashlib.sha256(os.fsencode(f"{_SCHEMA}\0{os.path.abspath(root)}")).hexdigest()[:32] + ".npz"

    def before() -> _Known:
        begin()
        return {} if anew else _read(cache, name)

    listings = _Listings(before)
    token = _current.set(listings)
    try:
        yield
    finally:
        _current.reset(token)
    if writes and (anew or listings.has_news):
        with suppress(OSError):  # then the next start looks again
            make_private(cache)
            if anew:  # also where there is no room for the new one
                (cache / name).unlink(missing_ok=True)
            write_atomically(cache / name, listings.dump())


class _Listings:
    """Those that an earlier start has kept, and those that this one has looked at. For any number of threads."""

    def __init__(self, before: Callable[[], _Known]) -> None:
        self._read = before
        self._now: _Known = {}
        self._first: dict[tuple[int, int], Folder] = {}
        """by identity: thousands of links may lead to one large folder"""
        self.has_news = False
        """whether what this start has looked at is worth keeping"""

    @cached_property
    def before(self) -> _Known:
        """What an earlier start has kept."""
        return self._read()

    def folder(self, path: str) -> Folder:
        listed = self._now_or_before(path)
        if listed is None:
            listed = self._first.get(_looked_before(path)[0]) or self._new(path, _scanned(path))
        return self._first.setdefault(listed.identity, listed)

    def some_of(self, wanted: Mapping[str, Collection[str]]) -> list[Folder]:
        """For each folder, whose path ends with a slash, these files at least."""

        def known(path: str) -> Folder | None:
            with suppress(OSError):  # it is gone
                return self._now_or_before(path)
            return None

        _ = self.before  # not by several threads
        with ThreadPoolExecutor(_THREADS) as pool:
            before = dict(zip(wanted, pool.map(known, wanted), strict=True))
            left = {
                path: {*names, *(listed.names if listed else ())}
                for path, names in wanted.items()
                if (listed := before[path]) is None or not set(names) <= set(listed.names)
            }
            asked = {path: self._new(path, found) for path, found in _asked(left, pool.map)}
        return [listed for path in wanted if (listed := asked.get(path) or before[path])]

    def _now_or_before(self, path: str) -> Folder | None:
        found = self._now.get(path) or self._as_before(path)
        if found is None:
            return None
        self._now[path] = found
        return found[1]

    def _new(self, path: str, found: tuple[_Stamp, Folder]) -> Folder:
        self.has_news |= found[0] != _UNSETTLED
        self._now[path] = found
        return found[1]

    def _as_before(self, path: str) -> tuple[_Stamp, Folder] | None:
        stamp, listed = self.before.get(path, (_UNSETTLED, None))
        if listed is None or stamp == _UNSETTLED:
            return None
        # Opened, not only looked at: an NFS client may answer for a minute from what it remembers.
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if _stamp(status) != stamp:
            return None
        return stamp, Folder((status.st_dev, status.st_ino), listed.names, listed.kinds, listed.sizes)

    def dump(self) -> bytes:
        target = io.BytesIO()
        found = [(path, *pair) for path, pair in sorted(self._now.items()) if pair[0] != _UNSETTLED]
        np.savez(
            target,
            paths=packed_text(path for path, _, _ in found),
            stamps=np.array([stamp for _, stamp, _ in found], np.int64).reshape(-1, 3),
            counts=np.array([len(listed.names) for _, _, listed in found], np.int64),
            names=packed_text(name for _, _, listed in found for name in listed.names),
            kinds=np.frombuffer(b"".join(listed.kinds for _, _, listed in found), np.uint8),
            sizes=np.array([size for _, _, listed in found for size in listed.sizes], np.int64),
        )
        return target.getvalue()


_current: ContextVar[_Listings | None] = ContextVar("listings", default=None)


def _scanned(path: str) -> tuple[_Stamp, Folder]:
    names, kinds, sizes = [], bytearray(), []
    identity, stamp = _looked_before(path)
    with os.scandir(path) as entries:
        for entry in entries:
            kind, size = _looked_at(entry)
            names.append(entry.name)
            kinds.append(kind)
            sizes.append(size)
    return stamp, Folder(identity, names, bytes(kinds), sizes)


def _asked(
    wanted: Mapping[str, Collection[str]], mapped: Callable[..., Iterator[Any]]
) -> Iterator[tuple[str, tuple[_Stamp, Folder]]]:
    """As `_scanned`, of these names alone; what is not there has no size. `mapped` is a `map`."""

    def place(path: str) -> tuple[tuple[int, int], _Stamp]:
        try:
            return _looked_before(path)
        except (OSError, ValueError):  # it is gone, or there is a NUL: for whoever asks
            return (0, 0), _UNSETTLED

    def size_of(path: str) -> int | None:
        try:
            return os.stat(path).st_size
        except (OSError, ValueError):
            return None

    places = list(mapped(place, wanted))
    sizes = mapped(size_of, (path + name for path, names in wanted.items() for name in names))
    for (path, names), (identity, stamp) in zip(wanted.items(), places, strict=True):
        there = {
            name: size
            for name, size in zip(names, islice(sizes, len(names)), strict=True)
            if size is not None
        }
        yield path, (stamp, Folder(identity, [*there], bytes([FILE] * len(there)), [*there.values()]))


def _looked_before(path: str) -> tuple[tuple[int, int], _Stamp]:
    """What tells a folder from others, and its times, taken first, so that what changes meanwhile shows later."""
    began_ns, status = time.time_ns(), os.stat(path)
    changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    settled = changed_ns < began_ns - SETTLED_S * 1e9
    return (status.st_dev, status.st_ino), _stamp(status) if settled else _UNSETTLED


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_ino % 2**63, status.st_mtime_ns, status.st_ctime_ns


def _looked_at(entry: os.DirEntry[str]) -> tuple[int, int]:
    """Kind and size; a file that cannot be looked at has 0, and is then quarantined like an empty one."""
    with suppress(OSError):  # a link to itself
        if entry.is_dir():
            return FOLDER, 0
    try:
        return FILE, entry.stat().st_size
    except OSError:
        return (GONE if entry.is_symlink() else FILE), 0


def _read(cache: Path, name: str) -> _Known:
    """What is kept, by path; nothing where it cannot be read."""
    try:
        with open_directory(Path(os.path.realpath(cache))) as fd:
            content = read_file(name, max_bytes=limits.LISTING, dir_fd=fd)
        found = read_npz(io.BytesIO(content))
        names, kinds, sizes = unpacked_text(found["names"]), found["kinds"].tobytes(), found["sizes"].tolist()
        ends = np.cumsum(found["counts"]).tolist()
        if not len(names) == len(kinds) == len(sizes) == (ends or [0])[-1] or max(kinds, default=0) > GONE:
            raise ValueError("its columns do not fit together")
        kept = {}
        places = zip(
            unpacked_text(found["paths"]), found["stamps"].tolist(), pairwise([0, *ends]), strict=True
        )
        for path, (inode, modified, changed), (begin, end) in places:
            listed = Folder((0, 0), names[begin:end], kinds[begin:end], sizes[begin:end])
            kept[path] = ((inode, modified, changed), listed)
        return kept
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
