"""Images that are one file each, read and decoded when they are needed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Source, host_tensor
from tl_dist.datasets.annotations import Annotations
from tl_dist.datasets.byte_range import Location
from tl_dist.datasets.store import EncodedStore
from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.refusal import ExitCode, Refusal

if TYPE_CHECKING:  # the processes that index TFRecord files start in half of the time without the schema
    from tl_dist.config import DataConfig


@dataclass(frozen=True, eq=False)
class FileStore(EncodedStore):
    """Image files: `paths` below `root`, `sizes` int64 [N] bytes.

    The fingerprint is over path, size and label of each file in order, the class names, and `facts`: a digest of
    whatever else came with the images. It reads no image, and does not depend on where `root` is.
    """

    root: Path
    paths: Sequence[str]
    sizes: NDArray[np.int64]
    facts: str = ""

    def fingerprint(self, source: Source) -> str:
        digest = hashlib.sha256(json.dumps([list(source.class_names), self.facts]).encode())
        for name, size, label in zip(self.paths, self.sizes, source.labels, strict=True):
            digest.update(os.fsencode(name) + f"\0{size}\0{label}\n".encode())
        return digest.hexdigest()

    def location(self, row: int) -> Location:
        return Location(self.root / self.paths[row])

    @cached_property
    def _path_tensor(self) -> Any:
        return host_tensor([os.fsencode(self.root / name) for name in self.paths])

    def encoded(self, row: Any) -> Any:
        import tensorflow as tf

        return tf.io.read_file(tf.gather(self._path_tensor, row))

    def encoded_bytes(self, row: int) -> bytes:
        return read_file(self.root / self.paths[row], max_bytes=limits.ENCODED_IMAGE, links=True)


Folders = dict[tuple[int, int], str]
"""folders by their identity, each with the path that came first"""


def file_source(
    root: Path,
    ids: Sequence[str],
    sizes: NDArray[np.int64],
    labels: NDArray[np.int32],
    class_names: Sequence[str],
    *,
    facts: str = "",
    annotations: Annotations = Annotations(),  # noqa: B008  (frozen)
    table: Path | None = None,
) -> Source:
    """Image files that are called by their paths below `root`."""
    store = FileStore(root, ids, sizes, facts)
    return Source(store, labels, ids, class_names, annotations, table=table)


def unlabelled(paths: Sequence[str], class_names: Sequence[str], decoding: int | None = None) -> Source:
    """Image files of whatever class: each has label 0. Relative paths are from the working directory."""
    zeros = np.zeros(len(paths), np.int64)
    source = file_source(Path.cwd(), paths, zeros, zeros.astype(np.int32), class_names)
    return replace(source, decoding=decoding)


def directory_of(data: DataConfig, expected: str) -> Path:
    """The directory `data.path`; refuses it unset (64) or missing (65), saying what is `expected` in it."""
    if data.path is None:
        raise Refusal(
            f"dataset {data.name} needs the directory of its files.",
            fix=f"set data.path to a directory with {expected}.",
            code=ExitCode.USAGE,
        )
    root = Path(data.path).expanduser()
    if not root.is_dir():
        raise Refusal(
            f"dataset {data.name}: there is no directory {root}.",
            fix=f"set data.path to a directory with {expected}.",
            code=ExitCode.DATA,
        )
    return root.resolve()


def bytes_in(path: Path, max_bytes: int) -> bytes:
    """All of a file; refuses (65) one that is missing, no regular file, or larger."""
    try:
        return read_file(path, max_bytes=max_bytes, links=True)
    except OSError as error:
        raise _unreadable(path, error) from error


def text_in(path: Path) -> str:
    """The text of a file that describes a data set."""
    return bytes_in(path, limits.DATASET_METADATA).decode("utf-8", "replace")


def size_of(path: Path) -> int:
    """Bytes of a file, which must not be empty; refuses (65) one that is missing, naming it."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if size == 0:
        raise unusable(f"{path} is empty", "restore or delete the file")
    return size


def unusable(what: str, fix: str) -> Refusal:
    """What is wrong with a data set (65), and what to do about it: two clauses, without their full stops."""
    return Refusal(f"{what}.", fix=f"{fix}.", code=ExitCode.DATA)


def count_folders(place: Path | str, met: Folders, more: Folders, num_images: int = 0) -> None:
    """Add to the folders that were met; refuses (65) one that is in two classes or splits by a link, and too many."""
    if twice := [(met[one], more[one]) for one in met.keys() & more.keys()]:
        what = f"{' and '.join(min(twice))} in {place} are one folder, of two classes or splits"
        raise unusable(what, "delete the link to it")
    met |= more
    if len(met) > limits.FOLDERS or num_images > limits.IMAGES:
        what = f"{place} holds more than {limits.FOLDERS:,} folders or {limits.IMAGES:,} images"
        raise unusable(what, "name a smaller part of it")


def _unreadable(path: Path, error: OSError) -> Refusal:
    return unusable(f"{path} cannot be read: {error.strerror}", "restore the file, or correct data.path")
