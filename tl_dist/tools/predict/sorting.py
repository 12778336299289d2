"""`tl-dist predict --sort-into`: copy each image into the folder of its class."""

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
_MAX_NAME_BYTES = 200  # of a folder


class Folders:
    """Holds DIR/CLASS for each class, created with its first image; no file is ever overwritten."""

    def __init__(self, root: Path, class_names: Sequence[str]) -> None:
        """Create the folder DIR. Refuse (73) one that cannot be created."""
        self._root = root
        self._folders = dict(zip(class_names, _names(class_names), strict=True))
        self._num_copied = self._num_present = 0
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._place = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._cannot("an image", error) from error

    def take(self, rows: Sequence[Row]) -> None:
        """Copy the images that could be decoded; if another image has the name of one, add a number to its name.

        Refuse (73) a copy that cannot be written, and a folder that is a link, since the user did not name its target.
        """
        for row in rows:
            if row.error:
                continue
            with ExitStack() as stack:
                try:
                    source = stack.enter_context(open(open_regular(row.path, links=True), "rb"))
                    self._copy(source, Path(os.path.basename(row.path)), self._folder(row.classes[0], stack))
                except OSError as error:
                    raise self._cannot(row.path, error) from error

    @property
    def summary(self) -> str:
        """How many images were copied, and how many were there already."""
        present = f", {self._num_present:,} were there already" if self._num_present else ""
        return f"{self._num_copied:,} images copied{present}"

    def _folder(self, class_name: str, stack: ExitStack) -> Path:
        """Return the folder by a descriptor, created if missing: nobody who can write in DIR can swap it for a link."""
        name = self._folders[class_name]
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._place)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._place)
        except NotADirectoryError:
            if (self._root / name).is_symlink():
                what = "its folder is a symbolic link"
                raise OSError(errno.ELOOP, what, str(self._root / name)) from None
            raise
        stack.callback(os.close, fd)
        return Path(f"/proc/self/fd/{fd}")

    def _copy(self, source: IO[bytes], name: Path, folder: Path) -> None:
        temporary = temporary_name(folder / "image")
        try:
            with open(temporary, "xb", opener=partial(os.open, mode=0o600)) as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
            for number in count(1):
                target = folder / (name.name if number == 1 else f"{name.stem}-{number}{name.suffix}")
                is_file = target.is_file() and not target.is_symlink()
                if is_file and filecmp.cmp(temporary, target, shallow=False):
                    self._num_present += 1
                    return
                with suppress(FileExistsError):
                    link_exclusively(temporary, target)
                    self._num_copied += 1
                    return
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _cannot(self, what: str, error: OSError) -> Refusal:
        return Refusal(
            f"{what} cannot be sorted into {self._root}: {_OF_DESCRIPTOR.sub('', reason(error))} ({self.summary}).",
            fix="make room there, or name another folder with --sort-into.",
            code=ExitCode.CANNOT_CREATE,
        )


def _names(class_names: Sequence[str]) -> list[str]:
    """Return a folder name for each class: its own, changed if it is no valid name or another class has it."""
    names: list[str] = []
    for number, class_name in enumerate(class_names):
        name = class_name.replace("/", "_").replace("\0", "_")
        if not name.strip(".") or len(os.fsencode(name)) > _MAX_NAME_BYTES:
            name = f"class {number}"
        while name in names:
            name += "_"
        names.append(name)
    return names
