"""The search paths of programs, modules and libraries, without the working directory."""

from __future__ import annotations

import os
from collections.abc import Mapping

_NAMES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


def elsewhere(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the path variables without relative and empty entries; `PATH=$PATH:` has an empty one."""
    named = {name: environment[name].split(os.pathsep) for name in _NAMES if name in environment}
    absolute = {name: os.pathsep.join(filter(os.path.isabs, entries)) for name, entries in named.items()}
    return {name: value or (os.defpath if name == "PATH" else "") for name, value in absolute.items()}
