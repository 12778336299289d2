"""List the files that the user names, by folders and patterns such as `a/**/*.png`, and which cannot be decoded."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path
from typing import BinaryIO

from tl_dist.datasets import directory_cache
from tl_dist.datasets.files import Folders, count_folders, unusable
from tl_dist.datasets.formats.image_folder import UNREADABLE, images_below
from tl_dist.datasets.headers import fault
from tl_dist.datasets.store import Location
from tl_dist.files import limits

STDIN = "-"

_THREADS = 8  # a check waits for the disk more than it computes
_AT_ONCE = 4096


def listed(names: Sequence[str], stdin: BinaryIO | None = None, *, null: bool = False) -> list[str]:
    """List the named files, each once: files as they are, the images below folders, patterns such as `a/**/*.png`.

    A folder that several links lead to is listed once, by the first path. `-` stands for the names on `stdin`, if there
    is one, separated by newlines or, with `null`, by NULs; they are not checked here. Refuses (65) any other name
    without a file.
    """
    files: list[str] = []
    met: Folders = {}
    with directory_cache.once():
        for name in names:
            files += _on(stdin, null) if name == STDIN and stdin else _named(name, met)
            count_folders(name, met, {}, len(files))
    if not files:
        raise unusable(
            f"there is no image in {', '.join(names[:8])}",
            "name files, folders with images, or a list of files on standard input",
        )
    return list(dict.fromkeys(files))


def _named(name: str, met: Folders) -> Iterator[str]:
    if os.path.isdir(name):
        yield from _below(name, met)
    elif os.path.lexists(name):
        yield name
    elif has_magic(name) and (matches := sorted(matching(name))):
        for match in matches:
            if not os.path.isdir(match):
                yield match
            elif "**" not in name:  # "**" also matches what is in the folder
                yield from _below(match, met)
    else:
        what = "matches" if has_magic(name) else "is at"
        raise unusable(f"nothing {what} {name}", "correct the path")


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


def _below(folder: str, met: Folders) -> list[str]:
    """List images in the order of their paths, with those in formats that cannot be decoded, to be reported later."""
    left_out: dict[str, list[str]] = {}
    images = [image.id for image in images_below(Path(folder), folder.rstrip("/") or "/", left_out, met)]
    return sorted(images + [name for suffix in UNREADABLE & left_out.keys() for name in left_out[suffix]])


def _on(stdin: BinaryIO, null: bool) -> list[str]:
    content = stdin.read(limits.LISTED_FILES + 1)
    if len(content) > limits.LISTED_FILES:
        what = f"standard input lists more than {limits.LISTED_FILES:,} bytes of names"
        raise unusable(what, "name fewer files at a time")
    if not null and b"\0" in content:
        what = "standard input holds a NUL, which no name does"
        raise unusable(what, "add -0 (--null) if it comes from find -print0")
    return [os.fsdecode(name) for name in content.split(b"\0" if null else b"\n") if name]


def unreadable(paths: Sequence[str]) -> Iterator[dict[int, str]]:
    """Yield why files cannot be decoded, as far as their first and last bytes tell, by index; thousands at a time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(paths), _AT_ONCE):
            faults = pool.map(lambda path: fault(Location(Path(path))), paths[first : first + _AT_ONCE])
            yield {first + k: bad.reason for k, bad in enumerate(faults) if bad is not None}
