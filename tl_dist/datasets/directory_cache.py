"""Cache the listings of a data set's folders, with sizes of files, until the folders change.

A thousand workers that each ask for the sizes of a million files take hours of a file server. Within `kept` the
listings come from a file that the first worker writes, and its readers only ask for the times of folders. A file
changed in place, which its folder does not show, is detected by `quarantine.screen`.
"""

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tl_dist.files import limits
from tl_dist.files.atomic import open_directory, write_atomically
from tl_dist.files.foreign import read_file
from tl_dist.files.private import make_private, refuse_unsafe

FILE, FOLDER, GONE = range(3)
"""kinds of entries; GONE is a broken link"""

SETTLED_S = 10.0
"""seconds; a folder that changed less than this before it was listed may change again in the same tick of its clock, up
to two seconds on some file servers, so its listing is not reused"""

_SCHEMA = 1  # increment it when the file format changes
_THREADS = 16  # a listing waits for the file server more than it computes
_UNSETTLED = (0, 0, 0)

_Stamp = tuple[int, int, int]  # inode, mtime, ctime: archives and rsync set mtime back


class Folder(NamedTuple):
    """Hold the entries of one folder, unordered; a link has the kind and size of its target."""

    identity: tuple[int, int]
    """device and inode: the same for all paths of a folder"""
    names: Sequence[str]
    kinds: bytes
    sizes: Sequence[int]
    """bytes; 0 unless it is a file"""

    def entries(self) -> Iterator[tuple[str, int, int]]:
        """Iterate over (name, kind, size) of the entries."""
        return zip(self.names, self.kinds, self.sizes, strict=True)


_Known = dict[str, tuple[_Stamp, Folder]]  # by path


def folder(path: Path) -> Folder:
    """List a folder, or the target of a link to one; raises OSError if it cannot be listed."""
    current = _current.get()
    name = os.fspath(path)
    return _scanned(name)[1] if current is None else current.folder(name)


def sizes_in(wanted: Mapping[str, Collection[str]]) -> dict[str, dict[str, int]]:
    """Return the sizes in bytes of files by folder and name, perhaps of more; without files that cannot be read."""
    current = _current.get() or _Listings(dict)
    _ = current.before  # read it before the threads start
    # Two pools: a thread that looks after a folder waits for those that ask for its files.
    with ThreadPoolExecutor(_THREADS) as folders, ThreadPoolExecutor(_THREADS) as files:
        sizes = folders.map(lambda path: current.sizes(path, wanted[path], files.map), wanted)
        return dict(zip(wanted, sizes, strict=True))


def look_at(paths: Sequence[Path]) -> None:
    """Prefetch listings in parallel, since each answer of a file server takes its time."""
    current = _current.get()
    if current is None:
        return

    def look(path: str) -> None:
        with suppress(OSError):  # the caller of `folder` gets it
            current.folder(path)

    _ = current.before  # read it before the threads start
    with ThreadPoolExecutor(_THREADS) as pool:
        deque(pool.map(look, map(os.fspath, paths)), maxlen=0)


@contextmanager
def once() -> Iterator[None]:
    """List each folder at most once within this context."""
    token = _current.set(_current.get() or _Listings(dict))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def kept(
    cache: Path, root: str, *, writes: bool, anew: bool = False, begin: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Take unchanged folders of the data set at `root` from the directory `cache` within this context.

    One worker alone sets `writes`, to add new listings. With `anew` the cached ones are ignored. `begin` is called
    before the cache is first read.
    """
    refuse_unsafe(cache, links=True)
    name = hashlib.sha256(os.fsencode(f"{_SCHEMA}\0{os.path.abspath(root)}")).hexdigest()[:32] + ".json"

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
            if anew:  # even if there is no room for the new one
                (cache / name).unlink(missing_ok=True)
            write_atomically(cache / name, listings.dump())


class _Listings:
    """Hold the listings cached by an earlier start, and the new ones. Thread-safe."""

    def __init__(self, before: Callable[[], _Known]) -> None:
        self._read = before
        self._now: _Known = {}
        self._first: dict[tuple[int, int], Folder] = {}
        """first listing by identity: thousands of links may lead to one large folder"""
        self.has_news = False
        """there are new listings to cache"""

    @cached_property
    def before(self) -> _Known:
        """Return the listings cached by an earlier start."""
        return self._read()

    def folder(self, path: str) -> Folder:
        """List a folder once, whatever links lead to it."""
        listed = self._now_or_before(path)
        if listed is None:
            listed = self._first.get(_looked_before(path)[0]) or self._new(path, _scanned(path))
        return self._first.setdefault(listed.identity, listed)

    def sizes(self, folder: str, names: Collection[str], mapped: Callable[..., Iterable[int | None]]) -> dict[str, int]:
        """Return the sizes of at least these files of a folder, without those that cannot be read."""
        path = os.path.join(folder, "")  # with a slash, it is cached with only the files that were asked for
        listed = None
        with suppress(OSError):  # it is gone
            listed = self._now_or_before(path)
        known = dict(zip(listed.names, listed.sizes, strict=True)) if listed else {}
        if not known.keys() >= set(names):
            identity, stamp = (0, 0), _UNSETTLED
            with suppress(OSError, ValueError):  # it is gone, or there is a NUL: reading a file reports that
                identity, stamp = _looked_before(path)
            wanted = [*{*names, *known}]
            sizes = zip(wanted, mapped(_size_of, [path + name for name in wanted]), strict=True)
            known = {name: size for name, size in sizes if size is not None}
            listed = Folder(identity, [*known], bytes([FILE] * len(known)), [*known.values()])
            self._new(path, (stamp, listed))
        return known

    def _now_or_before(self, path: str) -> Folder | None:
        entry = self._now.get(path) or self._as_before(path)
        if entry is None:
            return None
        self._now[path] = entry
        return entry[1]

    def _new(self, path: str, entry: tuple[_Stamp, Folder]) -> Folder:
        self.has_news |= entry[0] != _UNSETTLED
        self._now[path] = entry
        return entry[1]

    def _as_before(self, path: str) -> tuple[_Stamp, Folder] | None:
        stamp, listed = self.before.get(path, (_UNSETTLED, None))
        if listed is None or stamp == _UNSETTLED:
            return None
        # Opened, since an NFS client may answer a mere stat from its cache for a minute.
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if _stamp(status) != stamp:
            return None
        return stamp, Folder((status.st_dev, status.st_ino), listed.names, listed.kinds, listed.sizes)

    def dump(self) -> bytes:
        """Serialise the settled listings for the cache."""
        settled = {
            path: [stamp, names, [*kinds], sizes]
            for path, (stamp, (_, names, kinds, sizes)) in sorted(self._now.items())
            if stamp != _UNSETTLED
        }
        return json.dumps(settled).encode()


_current: ContextVar[_Listings | None] = ContextVar("listings", default=None)


def _scanned(path: str) -> tuple[_Stamp, Folder]:
    identity, stamp = _looked_before(path)
    with os.scandir(path) as entries:
        listed = [(entry.name, *_looked_at(entry)) for entry in entries]
    names, kinds, sizes = zip(*listed, strict=True) if listed else ((), (), ())
    return stamp, Folder(identity, names, bytes(kinds), sizes)


def _size_of(path: str) -> int | None:
    with suppress(OSError, ValueError):
        return os.stat(path).st_size
    return None


def _looked_before(path: str) -> tuple[tuple[int, int], _Stamp]:
    """Return identity and times of a folder, to take before it is listed, so that changes meanwhile show later."""
    began_ns, status = time.time_ns(), os.stat(path)
    changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    settled = changed_ns < began_ns - SETTLED_S * 1e9
    return (status.st_dev, status.st_ino), _stamp(status) if settled else _UNSETTLED


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _looked_at(entry: os.DirEntry[str]) -> tuple[int, int]:
    """Return kind and size; a file without a readable size has 0, and is quarantined like an empty one."""
    with suppress(OSError):  # a link to itself
        if entry.is_dir():
            return FOLDER, 0
    try:
        return FILE, entry.stat().st_size
    except OSError:
        return (GONE if entry.is_symlink() else FILE), 0


def _read(cache: Path, name: str) -> _Known:
    """Read the cached listings by path; empty if they are unreadable."""
    try:
        with open_directory(Path(os.path.realpath(cache))) as fd:
            content = read_file(name, max_bytes=limits.LISTING, dir_fd=fd)
        return {
            path: ((inode, modified, changed), Folder((0, 0), names, bytes(kinds), sizes))
            for path, ((inode, modified, changed), names, kinds, sizes) in json.loads(content).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
