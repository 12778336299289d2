"""A feature set on disk: a directory `features/KEY` beside the runs, complete or absent.

It has a .npy file with the rows of one worker or of several, and a manifest with the digest of each file. It is
committed by one rename, and repaired by one change of the manifest.
"""

from __future__ import annotations

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
from tl_dist.features.manifest import MANIFEST, Facts, Manifest, Shard, foreign_in
from tl_dist.files.atomic import (
    children,
    fsync_directory,
    server_time_ns,
    temporary_name,
    write_atomically,
    write_file,
)
from tl_dist.files.failpoint import failpoint
from tl_dist.files.foreign import open_regular
from tl_dist.parallel import DataParallel
from tl_dist.refusal import ExitCode, Refusal

MAX_FILES = 64
"""most files that are written for a set; more workers than this share them"""
_ORPHAN_S = 3600


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
        shards = [_map_shard(directory, manifest, shard) for shard in manifest.shards]
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
        rows = self._as_float32(np.concatenate(self._shards))
        return rows.reshape(-1, self.num_views, *self.manifest.shape)

    def some(self, examples: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the first view of some examples in memory: float32 [n, ...]."""
        starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        shards = np.searchsorted(starts, examples * self.num_views, side="right") - 1
        pairs = zip(shards.tolist(), (examples * self.num_views - starts[shards]).tolist(), strict=True)
        return self._as_float32(np.stack([np.asarray(self._shards[shard][row]) for shard, row in pairs]))

    def _as_float32(self, stored: np.ndarray) -> NDArray[np.float32]:
        rows = stored.view(ml_dtypes.bfloat16) if self.manifest.dtype == "bfloat16" else stored
        return rows.astype(np.float32)

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
        try:
            with _open_shard(directory, manifest, shard) as file:
                file.seek(0)
                is_whole = hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
        except (OSError, ValueError):
            is_whole = False
        if not is_whole:
            names.append(shard.file)
    return names


def _map_shard(directory: Path, manifest: Manifest, shard: Shard) -> np.ndarray:
    """Map the rows of a shard, as stored, from the page cache."""
    with _open_shard(directory, manifest, shard) as file:
        return np.memmap(file, _stored_dtype(manifest), "r", file.tell(), (shard.rows, *manifest.shape))


@contextmanager
def _open_shard(directory: Path, manifest: Manifest, shard: Shard) -> Iterator[io.BufferedReader]:
    """Open the file of a shard at its first row; raise OSError or ValueError if it does not match the manifest.

    The file's header is not parsed: it must equal, byte for byte, the header of these rows.
    """
    dtype, shape = _stored_dtype(manifest), (shard.rows, *manifest.shape)
    header = _header(dtype, shape)
    size = len(header) + math.prod(shape) * dtype.itemsize
    with open(open_regular(directory / shard.file), "rb") as file:
        if os.fstat(file.fileno()).st_size != size or file.read(len(header)) != header:
            raise ValueError(f"{shard.file} holds other rows")
        yield file


def _stored_dtype(manifest: Manifest) -> np.dtype:
    return np.dtype("uint16" if manifest.dtype == "bfloat16" else manifest.dtype)


def sweep(directory: Path, manifest: Manifest) -> None:
    """Remove old files that the manifest does not name: a worker was killed while it repaired the set."""
    named = {MANIFEST, *(shard.file for shard in manifest.shards)}
    with suppress(OSError):
        strays = [p for p in children(directory) if p.name not in {*named, *foreign_in(directory)}]
        now = (
            server_time_ns(directory) if strays else 0
        )  # it writes a file, and a whole set is only to be read
        for path in strays:
            # Another run may be about to name a new file.
            if now - path.stat().st_mtime_ns > _ORPHAN_S * 1e9:
                path.unlink()


def _round(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Round `rows` to the number format in which they are stored; refuse (65) a value out of its range."""
    if dtype == "computed":
        return rows
    with np.errstate(over="ignore"):
        result = rows.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    lost = np.isfinite(rows) & ~np.isfinite(result)
    if lost.any():
        raise Refusal(
            f"a feature of {float(rows[lost][0]):.4g} has no place in {dtype}.",
            fix="write 'dtype: bfloat16' below 'features:'.",
            code=ExitCode.DATA,
        )
    return result


def write_shard(
    path: Path, pieces: Iterator[np.ndarray], num_rows: int, dtype: str = "computed"
) -> dict[str, Any]:
    """Write `num_rows` rows into one file as they come; return what `commit` and `manifest_entry` need to know of it.

    `pieces` is consumed to its end; no file is written if there are no rows.
    """
    first = next(pieces, None)
    if first is None:
        return {"rows": 0}
    computed, first = first.dtype.name, _round(first, dtype)
    written = write_file(path, _npy(first, (_round(piece, dtype) for piece in pieces), num_rows))
    return {
        "file": path.name, "rows": num_rows, "sha256": written.sha256,
        "dtype": first.dtype.name, "computed": computed, "shape": first.shape[1:],
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
    dtype, row = np.dtype("uint16" if first["dtype"] == "bfloat16" else first["dtype"]), tuple(first["shape"])
    paths = [directory / shard["file"] for shard in shards]

    def content() -> Iterator[Any]:
        yield _header(dtype, (num_rows, *row))
        for path, shard in zip(paths, shards, strict=True):
            yield np.memmap(path, np.uint8, "r", len(_header(dtype, (shard["rows"], *row))))

    whole = temporary_name(paths[0])
    try:
        written = write_file(whole, content())
        os.rename(whole, paths[0])
        for path in paths[1:]:
            path.unlink()
    except OSError as error:
        raise storage_refusal(directory.parent, error) from error
    return {**first, "rows": num_rows, "sha256": written.sha256}


def _npy(first: np.ndarray, others: Iterator[np.ndarray], num_rows: int) -> Iterator[Any]:
    """Yield the content of a .npy file, never more than a piece of it in memory."""
    yield _header(_storable(first).dtype, (num_rows, *first.shape[1:]))
    count = 0
    for piece in chain([first], others):
        count += len(piece)
        yield np.ascontiguousarray(_storable(piece)).reshape(-1).view(np.uint8).data
    if count != num_rows:
        raise RuntimeError(f"{count} rows of features where {num_rows} were to come")


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy file of such an array."""
    start = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(start, {"descr": descr, "fortran_order": False, "shape": shape})
    return start.getvalue()


def _storable(rows: np.ndarray) -> np.ndarray:
    """Return the bits of bfloat16 rows, a type that .npy files do not have; other rows as they are."""
    return rows.view(np.uint16) if rows.dtype == ml_dtypes.bfloat16 else rows


def commit(
    temporary: Path, directory: Path, shards: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> None:
    """Write the manifest of the shards in `temporary` and rename it to `directory`: complete, or absent."""
    first = shards[0]
    manifest = Manifest(
        dtype=first["dtype"],
        computed=first["computed"],
        shape=list(first["shape"]),
        shards=[manifest_entry(shard) for shard in shards],
        facts=Facts(**facts),
    )
    try:
        failpoint("features.extracted", temporary)
        write_atomically(temporary / MANIFEST, manifest.encoded())
        (temporary / "owner.json").unlink()
        fsync_directory(temporary)
        failpoint("features.before_rename", temporary)
        os.rename(temporary, directory)
        fsync_directory(directory.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if directory.is_dir():  # another run has just committed the same features
            return
        raise storage_refusal(directory.parent, error) from error


def storage_refusal(root: Path, error: OSError) -> Refusal:
    """Return the refusal of a directory in which features cannot be written."""
    return Refusal(
        f"features cannot be kept in {root} ({error.strerror}).",
        fix="free space there, or set runtime.prefix_cache=off.",
        code=ExitCode.STORAGE,
    )


def removal_refusal(directory: Path) -> Refusal:
    """Return the refusal of a set that is removed again and again."""
    return Refusal(
        f"features in {directory} are removed as soon as they are there.",
        fix="end what removes them, or set runtime.prefix_cache=off.",
        code=ExitCode.STORAGE,
    )


def replace_shards(directory: Path, manifest: Manifest, new: Mapping[str, Shard]) -> Manifest:
    """Replace shards, by the file names of the old ones, all of them at once; return the new manifest."""
    shards = [new.get(old.file, old) for old in manifest.shards]
    manifest = manifest.model_copy(update={"shards": shards})
    failpoint("features.repaired", directory)
    write_atomically(directory / MANIFEST, manifest.encoded())
    for name in new:
        (directory / name).unlink(missing_ok=True)
    return manifest


def manifest_entry(shard: Mapping[str, Any]) -> Shard:
    """Return the manifest's entry of a shard that was written."""
    return Shard(file=shard["file"], rows=shard["rows"], sha256=shard["sha256"])
