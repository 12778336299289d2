"""Share a limited number of open files, and tell faults of the machine from faults of examples."""

import errno
import os
import resource
from collections.abc import Callable
from functools import cache, lru_cache

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


@cache
def shared_handles() -> Callable[[str], Handle]:
    """Return the function that opens the files of all sources of this process, and keeps those read last open.

    At most a quarter of its limit of open files. A file that makes room for another is closed when its last reader is
    done.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN if soft == resource.RLIM_INFINITY else max(1, min(MOST_OPEN, soft // 4))
    return lru_cache(most)(Handle)
