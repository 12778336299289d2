"""A feature set on disk: a directory `features/KEY` beside the runs, complete or absent.

It has a .npy file with the rows of one worker or of several, and a manifest with the digest of each file. One rename
commits it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.datasets import tensor_in_place
from tl_dist.features import manifest as manifests
from tl_dist.features.manifest import MANIFEST, Facts, Manifest, Shard
from tl_dist.files.atomic import fsync_directory, temporary_name, write_atomically, write_file
from tl_dist.files.failpoint import failpoint
from tl_dist.files.foreign import open_regular
from tl_dist.parallel import DataParallel
from tl_dist.refusal import ExitCode, Refusal

MAX_FILES = 64  # most files that are written for a set; more workers than this share them


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The open rows `example * num_views + view` of a split: they stay readable if their files are removed."""

    directory: Path
    num_views: int
    manifest: Manifest
    _shards: Sequence[np.ndarray]

    @classmethod
    def open(cls, directory: Path, num_views: int) -> FeatureSet:
        """Open a set; raise OSError or ValueError if a file is missing or does not match the manifest."""
        manifest = manifests.read(directory)
        shards = []
        for shard in manifest.shards:
            with _open_shard(directory, manifest, shard) as file:
                shape = (shard.rows, *manifest.shape)
                shards.append(np.memmap(file, _stored_dtype(manifest.dtype), "r", file.tell(), shape))
        return cls(directory, num_views, manifest, shards)

    @cached_property
    def _read_rows(self) -> Callable[[Any], Any]:
        """Return a function rows -> stored values, for tf.data to trace."""
        shards = [tensor_in_place(shard) for shard in self._shards]
        if len(shards) == 1:
            return lambda rows: tf.gather(shards[0], rows)
        starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

        def read(rows: Any) -> Any:
            holders = tf.searchsorted(starts[1:], rows, side="right")
            places = tf.dynamic_partition(tf.range(tf.size(rows)), holders, len(shards))
            inner_rows = tf.dynamic_partition(rows - tf.gather(starts, holders), holders, len(shards))
            values = [tf.gather(shard, k) for shard, k in zip(shards, inner_rows, strict=True)]
            return tf.dynamic_stitch(places, values)

        return read

    def array(self) -> np.ndarray:
        """Return all rows in memory: float32 [examples, views, ...]."""
        stored = np.concatenate(self._shards)
        rows = stored.view(ml_dtypes.bfloat16) if self.manifest.dtype == "bfloat16" else stored
        return rows.astype(np.float32).reshape(-1, self.num_views, *self.manifest.shape)

    def some(self, examples: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the first view of some examples in memory: float32 [n, ...]."""
        rows: NDArray[np.float32] = tf.cast(self.rows(tf.constant(examples, tf.int64), 0), tf.float32).numpy()
        return rows

    def rows(self, examples: Any, views: Any) -> Any:
        """Return the features of one view of each example, [rows, ...], in the type in which they were computed."""
        values = self._read_rows(examples * self.num_views + tf.cast(views, tf.int64))
        if self.manifest.dtype == "bfloat16":
            values = tf.bitcast(values, tf.bfloat16)
        values = tf.cast(values, self.manifest.computed)
        return tf.ensure_shape(values, [examples.shape[0], *self.manifest.shape])


def damaged_shards(directory: Path, manifest: Manifest, shards: Sequence[Shard]) -> list[str]:
    """Return the names of the shards whose files are missing or changed."""
    names = []
    for shard in shards:
        digest = None
        with suppress(OSError, ValueError), _open_shard(directory, manifest, shard) as file:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shard.sha256:
            names.append(shard.file)
    return names


@contextmanager
def _open_shard(directory: Path, manifest: Manifest, shard: Shard) -> Iterator[io.BufferedReader]:
    """Open the file of a shard at its first row; raise OSError or ValueError if it does not match the manifest.

    The file's header is not parsed: it must equal, byte for byte, the header of these rows.
    """
    shape = (shard.rows, *manifest.shape)
    header = _header(manifest.dtype, shape)
    size = len(header) + math.prod(shape) * _stored_dtype(manifest.dtype).itemsize
    with open(open_regular(directory / shard.file), "rb") as file:
        if os.fstat(file.fileno()).st_size != size or file.read(len(header)) != header:
            raise ValueError(f"{shard.file} holds other rows")
        yield file


def _stored_dtype(name: str) -> np.dtype:
    """Return the type of rows in a .npy file, which does not have bfloat16: these are the bits."""
    return np.dtype("uint16" if name == "bfloat16" else name)


def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy file of such rows."""
    start = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(_stored_dtype(dtype))
    np.lib.format.write_array_header_1_0(start, {"descr": descr, "fortran_order": False, "shape": shape})
    return start.getvalue()


def _round(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Round `rows` to the number format in which they are stored; refuse (65) a value out of its range."""
    if dtype == "computed":
        return rows
    with np.errstate(over="ignore"):
        result = rows.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    lost = np.isfinite(rows) & ~np.isfinite(result)
    if lost.any():
        what = f"a feature of {float(rows[lost][0]):.4g} has no place in {dtype}."
        raise Refusal(what, fix="write 'dtype: bfloat16' below 'features:'.", code=ExitCode.DATA)
    return result


def write_shard(path: Path, pieces: Iterator[np.ndarray], num_rows: int, dtype: str = "computed") -> dict[str, Any]:
    """Write `num_rows` rows into one file as they come; return what `commit` needs to know of it.

    `pieces` is consumed to its end; no file is written if there are no rows.
    """
    first = next(pieces, None)
    if first is None:
        return {"rows": 0}
    computed, shape = first.dtype.name, first.shape[1:]
    stored = computed if dtype == "computed" else dtype

    def content() -> Iterator[Any]:
        yield _header(stored, (num_rows, *shape))
        count = 0
        for piece in chain([first], pieces):
            count += len(piece)
            yield np.ascontiguousarray(_round(piece, dtype)).reshape(-1).view(np.uint8).data
        if count != num_rows:
            raise RuntimeError(f"{count} rows of features where {num_rows} were to come")

    written = write_file(path, content())
    return {
        "file": path.name, "rows": num_rows, "sha256": written.sha256,
        "dtype": stored, "computed": computed, "shape": shape,
    }  # fmt: skip


def gather_shards(directory: Path, mine: Mapping[str, Any], parallel: DataParallel) -> list[dict[str, Any]]:
    """Return what all workers have written into `directory`, in the order of their rows. Blocks.

    Every reader maps every file and reads from each for each batch: if there are more than MAX_FILES, neighbours are
    joined into one file, which the first of their workers writes.
    """

    def everyone(shard: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [s for s in map(json.loads, parallel.gather(json.dumps(shard).encode())) if s["rows"]]

    shards = everyone(mine)
    at_once = -(-len(shards) // MAX_FILES)
    if at_once < 2:
        return shards
    parts = (shards[k : k + at_once] for k in range(0, len(shards), at_once))
    own = next((part for part in parts if part[0]["file"] == mine.get("file")), None)
    return everyone(_join(directory, own) if own else {"rows": 0})


def _join(directory: Path, shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Replace several files of consecutive rows by one."""
    first, num_rows = shards[0], sum(shard["rows"] for shard in shards)
    paths = [directory / shard["file"] for shard in shards]

    def header(rows: int) -> bytes:
        return _header(first["dtype"], (rows, *first["shape"]))

    def content() -> Iterator[Any]:
        yield header(num_rows)
        for path, shard in zip(paths, shards, strict=True):
            yield np.memmap(path, np.uint8, "r", len(header(shard["rows"])))

    whole = temporary_name(paths[0])
    try:
        written = write_file(whole, content())
        os.rename(whole, paths[0])
        for path in paths[1:]:
            path.unlink()
    except OSError as error:
        raise storage_refusal(directory.parent, error) from error
    return {**first, "rows": num_rows, "sha256": written.sha256}


def commit(
    temporary: Path,
    directory: Path,
    shards: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    *,
    replace: bool = False,
) -> None:
    """Write the manifest of the shards in `temporary` and rename it to `directory`: complete, or absent.

    With `replace`, a damaged set of this name is removed just before.
    """
    first = shards[0]
    manifest = Manifest(
        dtype=first["dtype"],
        computed=first["computed"],
        shape=list(first["shape"]),
        shards=[Shard(file=s["file"], rows=s["rows"], sha256=s["sha256"]) for s in shards],
        facts=Facts(**facts),
    )
    try:
        failpoint("features.extracted", temporary)
        write_atomically(temporary / MANIFEST, manifest.encoded())
        (temporary / "owner.json").unlink()
        fsync_directory(temporary)
        failpoint("features.before_rename", temporary)
        if replace:
            manifests.discard(directory)
        os.rename(temporary, directory)
        fsync_directory(directory.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno not in (
            errno.EEXIST,
            errno.ENOTEMPTY,
        ):  # another run has just committed the same features
            raise storage_refusal(directory.parent, error) from error


def storage_refusal(root: Path, error: OSError) -> Refusal:
    """Return the refusal of a directory in which features cannot be written."""
    what = f"features cannot be kept in {root} ({error.strerror})."
    return Refusal(what, fix="free space there, or set runtime.prefix_cache=off.", code=ExitCode.STORAGE)
