"""The limit of open files of a process."""

from __future__ import annotations

import resource

_MAX_OPEN = 1 << 16  # not more: some libraries close every possible descriptor, one by one


def allow_many_open_files() -> None:
    """Raise this process's soft limit of open files, often 1,024, toward the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MAX_OPEN if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN)
    if limit > soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
