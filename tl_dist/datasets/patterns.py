"""Match patterns of paths, such as `a/**/*.png`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path

from tl_dist.datasets import directory_cache
from tl_dist.datasets.files import Folders, count_folders


def matching(pattern: str) -> Iterator[str]:
    """Yield what a pattern matches, as `glob` does, but list each folder once for each part of the pattern.

    With `glob`, two links to the folder that holds them would give paths until memory is full.
    """
    parts = [part for part in pattern.split("/") if part]
    left: deque[tuple[str, int]] = deque([("/" * pattern.startswith("/"), 0)])
    met: list[Folders] = [{} for _ in parts]
    while left:
        folder, k = left.popleft()  # short paths first
        part, is_last, deep = parts[k], k + 1 == len(parts), parts[k] == "**"
        if not has_magic(part):
            if not is_last:
                left.append((f"{folder}{part}/", k + 1))
            elif os.path.lexists(folder + part):
                yield folder + part
            continue
        try:
            listed = directory_cache.folder(Path(folder or "."))
        except OSError:  # no folder, or not readable
            continue
        if listed.identity in met[k]:
            continue
        count_folders(pattern, met[k], {listed.identity: folder})
        if deep and not is_last:
            left.append((folder, k + 1))
        for name, kind, _ in sorted(listed.entries()):
            if (name.startswith(".") and not part.startswith(".")) or not (deep or fnmatchcase(name, part)):
                continue
            if is_last:
                yield folder + name
            if kind == directory_cache.FOLDER and (deep or not is_last):
                left.append((f"{folder}{name}/", k if deep else k + 1))
