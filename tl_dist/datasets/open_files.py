"""Open files, of which a process may have only so many, and faults of the machine, for which no example is to blame."""

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
"""Too many open files, no memory, storage that fails or was mounted anew: another file would have met the same."""

MOST_OPEN = 256


def machine_refusal(what: str, fault: str) -> Refusal:
    """Of a run that cannot read, for a reason that is none of its data's."""
    return Refusal(
        f"{what} cannot be read: {fault}. No example is to blame.",
        fix="see to the storage, the memory and the limit of open files (ulimit -n) of this host; then run the "
        "same command again.",
        code=ExitCode.STORAGE,
    )


class Handle:
    """A descriptor of a file for reading, closed when nobody holds this object any more."""

    def __init__(self, path: str) -> None:
        self.fd = open_regular(path, links=True)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound: `os` may be gone at exit
        if hasattr(self, "fd"):  # else it was never opened
            close(self.fd)


class Handles:
    """The `most` files that were read last stay open. For any number of threads.

    A file that makes room for another is closed when the last of its readers is done.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self._open: OrderedDict[str, Handle] = OrderedDict()

    def pread(self, path: str, size: int, offset: int) -> bytes:
        """As `os.pread`, of a file that is opened where it is not open."""
        handle = self.of(path)  # kept to the end: another thread may have it make room
        return os.pread(handle.fd, size, offset)

    def of(self, path: str) -> Handle:
        """The file, open as long as the caller keeps what it gets; OSError where it cannot be opened."""
        with self._lock:
            found = self._open.get(path)
            if found is not None:
                self._open.move_to_end(path)
                return found
        opened = Handle(path)  # without the lock: far away it takes long
        with self._lock:
            kept = self._open.setdefault(path, opened)  # another thread may have been faster
            self._open.move_to_end(path)
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        return kept


@cache
def shared_handles() -> Handles:
    """Those of all sources of this process: at most a quarter of the files that it may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Handles(MOST_OPEN if soft == resource.RLIM_INFINITY else max(1, min(MOST_OPEN, soft // 4)))
