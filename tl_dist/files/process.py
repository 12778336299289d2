"""What a process passes on to others and to libraries: its limit of open files, and its search paths."""

import os
import resource
from collections.abc import Mapping

_MAX_OPEN = 1 << 16  # not more: some libraries close every possible descriptor, one by one
_PATHS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


def allow_many_open_files() -> None:
    """Raise this process's soft limit of open files, often 1,024, toward the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MAX_OPEN if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN)
    if limit > soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def elsewhere(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the path variables without relative and empty entries; `PATH=$PATH:` has an empty one."""
    named = {name: environment[name].split(os.pathsep) for name in _PATHS if name in environment}
    absolute = {name: os.pathsep.join(filter(os.path.isabs, entries)) for name, entries in named.items()}
    return {name: value or (os.defpath if name == "PATH" else "") for name, value in absolute.items()}
