"""Where programs, modules and libraries are looked for, without the working directory."""

from __future__ import annotations

import os
from collections.abc import Mapping

_NAMES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


def elsewhere(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of paths without entries that are empty, as `PATH=$PATH:` makes one, or relative."""
    named = {name: environment[name].split(os.pathsep) for name in _NAMES if name in environment}
    kept = {name: os.pathsep.join(filter(os.path.isabs, entries)) for name, entries in named.items()}
    return {name: value or (os.defpath if name == "PATH" else "") for name, value in kept.items()}
