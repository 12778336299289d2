"""How many files a process may have open."""

from __future__ import annotations

import resource

_MOST_ALLOWED = 1 << 16  # some libraries close every file that they might have open, one by one


def allow_many_open_files() -> None:
    """Raise this process's own limit of open files, often 1,024, toward what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_ALLOWED if hard == resource.RLIM_INFINITY else min(hard, _MOST_ALLOWED)
    if wanted > soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
