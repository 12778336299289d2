"""`tl-dist predict --sort-into`: a copy of each image in the folder of its class."""

from __future__ import annotations

import errno
import filecmp
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO

from tl_dist.files.atomic import link_exclusively, reason, temporary_name
from tl_dist.files.foreign import open_regular
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.tools.predict.table import Row

_OF_DESCRIPTOR = re.compile(r": /proc/self/fd/.*", re.DOTALL)
_LONGEST = 200  # bytes of the name of a folder


class Folders:
    """DIR/CLASS for each class, made when the first image comes; nothing there is ever written over."""

    def __init__(self, root: Path, class_names: Sequence[str]) -> None:
        """Refuses (73) where the folder cannot be made."""
        self._root = root
        self._folders = dict(zip(class_names, _names(class_names), strict=True))
        self._copied = self._there = 0
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._place = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._cannot("an image", error) from error

    def take(self, rows: Sequence[Row]) -> None:
        """Copy the images of these rows, but those that cannot be decoded."""
        for row in rows:
            if not row.error:
                self._put(row.path, row.classes[0])

    @property
    def said(self) -> str:
        """How much of what is there is new."""
        there = f", {self._there:,} were there already" if self._there else ""
        return f"{self._copied:,} images copied{there}"

    def _put(self, image: str, class_name: str) -> None:
        """Copy an image to where its class is; where another one has its name, it gets a number.

        Refuses (73) where it cannot be written, and a folder that is a link: what that leads to was not named.
        """
        with ExitStack() as held:
            try:
                source = held.enter_context(open(open_regular(image, links=True), "rb"))
                self._copy(source, Path(os.path.basename(image)), self._folder(class_name, held))
            except OSError as error:
                raise self._cannot(image, error) from error

    def _folder(self, class_name: str, held: ExitStack) -> Path:
        """The folder by a descriptor, made if need be: who can write in the root cannot put a link in its place."""
        name = self._folders[class_name]
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._place)
        try:
            fd = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._place
            )
        except NotADirectoryError:
            if (self._root / name).is_symlink():
                what = "its folder is a symbolic link"
                raise OSError(errno.ELOOP, what, str(self._root / name)) from None
            raise
        held.callback(os.close, fd)
        return Path(f"/proc/self/fd/{fd}")

    def _copy(self, source: IO[bytes], name: Path, folder: Path) -> None:
        temporary = temporary_name(folder / "image")
        try:
            with open(temporary, "xb", opener=partial(os.open, mode=0o600)) as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
            for number in count(1):
                target = folder / (name.name if number == 1 else f"{name.stem}-{number}{name.suffix}")
                if os.path.lexists(target) and _equal(temporary, target):
                    self._there += 1
                    return
                with suppress(FileExistsError):
                    link_exclusively(temporary, target)
                    self._copied += 1
                    return
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _cannot(self, what: str, error: OSError) -> Refusal:
        return Refusal(
            f"{what} cannot be sorted into {self._root}: {_OF_DESCRIPTOR.sub('', reason(error))} ({self.said}).",
            fix="make room there, or name another folder with --sort-into.",
            code=ExitCode.CANNOT_CREATE,
        )


def _equal(image: Path, other: Path) -> bool:
    return not other.is_symlink() and other.is_file() and filecmp.cmp(image, other, shallow=False)


def _names(class_names: Sequence[str]) -> list[str]:
    """A folder's name for each class: its own, unless that would be none or is that of another."""
    found: list[str] = []
    for number, name in enumerate(class_names):
        own = name.replace("/", "_").replace("\0", "_")
        if not own.strip(".") or len(os.fsencode(own)) > _LONGEST:
            own = f"class {number}"
        while own in found:
            own += "_"
        found.append(own)
    return found
