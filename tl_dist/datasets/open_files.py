"""Share a limited number of open files, and tell faults of the machine from faults of examples."""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from threading import Lock

from tl_dist.files.foreign import open_regular
from tl_dist.refusal import ExitCode, Refusal

MACHINE_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE)
"""too many open files, no memory, storage that fails or was remounted: any other file would fail likewise"""

MOST_OPEN = 256


def machine_refusal(what: str, fault: str) -> Refusal:
    """Make the refusal (74) of a run that cannot read for a reason outside its data."""
    return Refusal(
        f"{what} cannot be read: {fault}. No example is to blame.",
        fix="see to the storage, the memory and the limit of open files (ulimit -n) of this host; then run the "
        "same command again.",
        code=ExitCode.STORAGE,
    )


class Handle:
    """Hold a file descriptor for reading, closed when the last reference to this object is gone."""

    def __init__(self, path: str) -> None:
        self.fd = open_regular(path, links=True)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound: `os` may be gone at exit
        if hasattr(self, "fd"):  # else it was never opened
            close(self.fd)


class Handles:
    """Keep the `most` files that were read last open. Thread-safe.

    A file that makes room for another is closed when its last reader is done.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self._open: OrderedDict[str, Handle] = OrderedDict()

    def pread(self, path: str, size: int, offset: int) -> bytes:
        """Read as `os.pread` does, opening the file if it is not open."""
        handle = self.of(path)  # a reference, since another thread may evict it
        return os.pread(handle.fd, size, offset)

    def of(self, path: str) -> Handle:
        """Return a handle of a file, open as long as the caller holds it; raises OSError if it cannot be opened."""
        with self._lock:
            handle = self._open.get(path)
            if handle is not None:
                self._open.move_to_end(path)
                return handle
        opened = Handle(path)  # without the lock: a remote file takes long to open
        with self._lock:
            handle = self._open.setdefault(path, opened)  # another thread may have been faster
            self._open.move_to_end(path)
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        return handle


@cache
def shared_handles() -> Handles:
    """Return the handles of all sources of this process: at most a quarter of its limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Handles(MOST_OPEN if soft == resource.RLIM_INFINITY else max(1, min(MOST_OPEN, soft // 4)))
