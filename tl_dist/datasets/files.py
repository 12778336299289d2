"""Sources of images in one file each, and helpers to open the files of a data set."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Source, host_tensor
from tl_dist.datasets.store import EncodedStore, Location
from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.refusal import ExitCode, Refusal

if TYPE_CHECKING:  # helper processes of `shard_index` start in half the time without the schema
    from tl_dist.config import DataConfig


@dataclass(frozen=True, eq=False)
class FileStore(EncodedStore):
    """Read image files at `paths` below `root`, of `sizes` int64 [N] bytes; `facts` digests all other metadata."""

    root: Path
    paths: Sequence[str]
    sizes: NDArray[np.int64]
    facts: str = ""

    def fingerprint(self, source: Source) -> str:
        """Return a hex digest of paths, sizes, labels, class names and `facts`, wherever `root` is; reads no image."""
        digest = hashlib.sha256(json.dumps([list(source.class_names), self.facts]).encode())
        for name, size, label in zip(self.paths, self.sizes, source.labels, strict=True):
            digest.update(os.fsencode(name) + f"\0{size}\0{label}\n".encode())
        return digest.hexdigest()

    def location(self, row: int) -> Location:
        """Locate an image: a whole file."""
        return Location(self.root / self.paths[row])

    @cached_property
    def _path_tensor(self) -> Any:
        return host_tensor([os.fsencode(self.root / name) for name in self.paths])

    def encoded_rows(self, rows: Any) -> Any:
        """Read image files string [rows]."""
        import tensorflow as tf

        return tf.stack([tf.io.read_file(path) for path in tf.unstack(tf.gather(self._path_tensor, rows))])


Folders = dict[tuple[int, int], str]
"""first path of each folder by its identity"""


def unlabelled(paths: Sequence[str], class_names: Sequence[str]) -> Source:
    """Make a source of image files of unknown class, with label 0. Relative paths are from the working directory."""
    zeros = np.zeros(len(paths), np.int64)
    return Source(FileStore(Path.cwd(), paths, zeros), zeros.astype(np.int32), paths, class_names)


def directory_of(data: DataConfig, expected: str) -> Path:
    """Return the directory `data.path`; refuses it unset (64) or missing (65), saying what is `expected` in it."""
    root = Path(data.path or "").expanduser()
    if data.path is None or not root.is_dir():
        unset = data.path is None
        why = " needs the directory of its files" if unset else f": there is no directory {root}"
        what = f"dataset {data.name}{why}."
        fix = f"set data.path to a directory with {expected}."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE if unset else ExitCode.DATA)
    return root.resolve()


def bytes_in(path: Path, max_bytes: int) -> bytes:
    """Read a whole file; refuses (65) one that is missing, no regular file, or larger than `max_bytes`."""
    try:
        return read_file(path, max_bytes=max_bytes, links=True)
    except OSError as error:
        raise _unreadable(path, error) from error


def text_in(path: Path) -> str:
    """Read the text of a file that describes a data set."""
    return bytes_in(path, limits.DATASET_METADATA).decode("utf-8", "replace")


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; refuses (65) one that is missing or empty."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if size == 0:
        raise unusable(f"{path} is empty", "restore or delete the file")
    return size


def unusable(what: str, fix: str) -> Refusal:
    """Make the refusal (65) of a data set from two clauses without full stops: what is wrong, and what to do."""
    return Refusal(f"{what}.", fix=f"{fix}.", code=ExitCode.DATA)


def count_folders(place: Path | str, met: Folders, added: Folders, num_images: int = 0) -> None:
    """Add the folders `added` to `met`; refuses (65) one that links put in two classes or splits, and too many."""
    if twice := [(met[identity], added[identity]) for identity in met.keys() & added.keys()]:
        what = f"{' and '.join(min(twice))} in {place} are one folder, of two classes or splits"
        raise unusable(what, "delete the link to it")
    met |= added
    if len(met) > limits.FOLDERS or num_images > limits.IMAGES:
        what = f"{place} holds more than {limits.FOLDERS:,} folders or {limits.IMAGES:,} images"
        raise unusable(what, "name a smaller part of it")


def _unreadable(path: Path, error: OSError) -> Refusal:
    return unusable(f"{path} cannot be read: {error.strerror}", "restore the file, or correct data.path")
