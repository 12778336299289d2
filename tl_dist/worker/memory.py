"""How much memory this process takes, and how much more it may take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
_V2 = ("memory.max", "memory.current", "file", "shmem")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem")
"""of either version of the interface: the limit, what is charged, and its lines of memory.stat"""


def held_bytes() -> int:
    """Bytes that this process alone takes; pages of files that it has mapped can be dropped, and do not count."""
    info = psutil.Process().memory_info()
    return int(info.rss - getattr(info, "shared", 0))


def available_bytes(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes free on the host, or within the control groups of this process: a batch system's limit, a container's.

    Cached pages of files count as free, since the kernel drops them before it refuses memory. A group that cannot be
    read sets no limit.
    """
    rooms = (_room(group, names) for group, names in _groups(cgroups, membership))
    return min([psutil.virtual_memory().available, *(room for room in rooms if room is not None)])


def _groups(cgroups: Path, membership: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """This process's groups that may limit memory, each with those above it, and their names of things."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (cgroups / "memory", _V1) if controllers else (cgroups, _V2)
        group = root / path.strip("/")
        while group.is_relative_to(root):
            yield group, names
            group = group.parent


def _room(group: Path, names: tuple[str, ...]) -> int | None:
    limit, charged, cached, shared = names
    try:
        of_group = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        held = int((group / charged).read_text()) - (int(of_group[cached]) - int(of_group[shared]))
        return int((group / limit).read_text()) - held
    except (OSError, KeyError, ValueError):  # no such file, or a limit of "max"
        return None
