"""Features on disk: a directory `features/KEY` beside the runs, complete or absent.

It holds a .npy file of rows for each worker that computed them, or for several, and a manifest with the digest of each.
It is committed by one rename, and repaired by one change of the manifest.
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
"""of a set that is made; as many workers or more share them"""
_ORPHAN_S = 3600


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The rows of one split on disk: row `example * num_views + view`. Open: they stay when their files are removed."""

    directory: Path
    num_views: int
    manifest: Manifest
    _shards: Sequence[np.ndarray]

    @classmethod
    def open(cls, directory: Path, num_views: int) -> FeatureSet:
        """Raises OSError or ValueError where a file is missing or is not what the manifest says."""
        manifest = manifests.read(directory)
        shards = [_mapped(directory, manifest, shard) for shard in manifest.shards]
        return cls(directory, num_views, manifest, shards)

    @cached_property
    def _read_rows(self) -> Callable[[Any], Any]:
        """(rows) -> stored values, traced by tf.data."""
        shards = [tensor_in_place(shard) for shard in self._shards]
        if len(shards) == 1:
            return lambda rows: tf.gather(shards[0], rows)
        starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

        def read(rows: Any) -> Any:
            holders = tf.searchsorted(starts[1:], rows, side="right")
            places = tf.dynamic_partition(tf.range(tf.size(rows)), holders, len(shards))
            wanted = tf.dynamic_partition(rows - tf.gather(starts, holders), holders, len(shards))
            return tf.dynamic_stitch(
                places, [tf.gather(shard, k) for shard, k in zip(shards, wanted, strict=True)]
            )

        return read

    def array(self) -> np.ndarray:
        """float32 [examples, views, ...]: everything, in memory."""
        rows = np.concatenate(self._shards)
        if self.manifest.dtype == "bfloat16":
            rows = rows.view(ml_dtypes.bfloat16)
        return rows.reshape(-1, self.num_views, *self.manifest.shape).astype(np.float32)

    def some(self, examples: NDArray[np.integer]) -> NDArray[np.float32]:
        """float32 [n, ...]: the first view of some examples, in memory."""
        starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        shards = np.searchsorted(starts, examples * self.num_views, side="right") - 1
        pairs = zip(shards.tolist(), (examples * self.num_views - starts[shards]).tolist(), strict=True)
        found = np.stack([np.asarray(self._shards[shard][row]) for shard, row in pairs])
        return (found.view(ml_dtypes.bfloat16) if self.manifest.dtype == "bfloat16" else found).astype(
            np.float32
        )

    def rows(self, examples: Any, views: Any) -> Any:
        """[rows, ...]: the features of one view of each example, as computed, however they are kept."""
        values = self._read_rows(examples * self.num_views + tf.cast(views, tf.int64))
        if self.manifest.dtype == "bfloat16":
            values = tf.bitcast(values, tf.bfloat16)
        values = tf.cast(values, self.manifest.computed or values.dtype)
        return tf.ensure_shape(values, [examples.shape[0], *self.manifest.shape])


def damaged(directory: Path, manifest: Manifest, shards: Sequence[Shard]) -> list[str]:
    """Names of those of these files that are missing or changed."""
    bad = []
    for shard in shards:
        try:
            with _opened(directory, manifest, shard) as file:
                file.seek(0)
                whole = hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
        except (OSError, ValueError):
            whole = False
        if not whole:
            bad.append(shard.file)
    return bad


def _mapped(directory: Path, manifest: Manifest, shard: Shard) -> np.ndarray:
    """[rows, ...] as stored, in the page cache."""
    with _opened(directory, manifest, shard) as file:
        return np.memmap(file, _stored(manifest), "r", file.tell(), (shard.rows, *manifest.shape))


@contextmanager
def _opened(directory: Path, manifest: Manifest, shard: Shard) -> Iterator[io.BufferedReader]:
    """The file of a shard at its first row; raises OSError or ValueError where it is not what the manifest says.

    Nothing that the file says of itself is parsed: it has to begin as a file of ours with these rows does.
    """
    dtype, shape = _stored(manifest), (shard.rows, *manifest.shape)
    header = _header(dtype, shape)
    size = len(header) + math.prod(shape) * dtype.itemsize
    with open(open_regular(directory / shard.file), "rb") as file:
        if os.fstat(file.fileno()).st_size != size or file.read(len(header)) != header:
            raise ValueError(f"{shard.file} holds other rows")
        yield file


def _stored(manifest: Manifest) -> np.dtype:
    return np.dtype("uint16" if manifest.dtype == "bfloat16" else manifest.dtype)


def sweep(directory: Path, manifest: Manifest) -> None:
    """Remove files that the manifest does not name and that are old: of a worker that was killed while it repaired."""
    named = {MANIFEST, *(shard.file for shard in manifest.shards)}
    with suppress(OSError):
        strays = [p for p in children(directory) if p.name not in {*named, *foreign_in(directory)}]
        now = server_time_ns(directory) if strays else 0  # leaves a trace: a set that is whole is only read
        for path in strays:
            # A new one may be of another run, which is about to name it.
            if now - path.stat().st_mtime_ns > _ORPHAN_S * 1e9:
                path.unlink()


def rounded(rows: np.ndarray, dtype: str) -> np.ndarray:
    """`rows` in the number format that they are kept in. Refuses (65) a value that it has no room for."""
    if dtype == "computed":
        return rows
    with np.errstate(over="ignore"):
        kept = rows.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    lost = np.isfinite(rows) & ~np.isfinite(kept)
    if lost.any():
        raise Refusal(
            f"a feature of {float(rows[lost][0]):.4g} has no place in {dtype}.",
            fix="write 'dtype: bfloat16' below 'features:'.",
            code=ExitCode.DATA,
        )
    return kept


def write_shard(
    path: Path, pieces: Iterator[np.ndarray], num_rows: int, dtype: str = "computed"
) -> dict[str, Any]:
    """Write `num_rows` rows into one file as they come; what `commit` and `replace_shards` want to know of it.

    `pieces` is taken to its end; no file is made where there are no rows.
    """
    first = next(pieces, None)
    if first is None:
        return {"rows": 0}
    computed, first = first.dtype.name, rounded(first, dtype)
    written = write_file(path, _npy(first, (rounded(piece, dtype) for piece in pieces), num_rows))
    return {
        "file": path.name, "rows": num_rows, "sha256": written.sha256,
        "dtype": first.dtype.name, "computed": computed, "shape": first.shape[1:],
    }  # fmt: skip


def gathered(directory: Path, mine: Mapping[str, Any], parallel: DataParallel) -> list[dict[str, Any]]:
    """What all workers have written into `directory`, in the order of their rows. Blocks.

    Every reader maps every file and asks each for each batch: of more than MAX_FILES, neighbours become one, which the
    first of their workers writes.
    """

    def everyone(shard: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [s for s in map(json.loads, parallel.gather(json.dumps(shard).encode())) if s["rows"]]

    shards = everyone(mine)
    at_once = -(-len(shards) // MAX_FILES)
    if at_once < 2:
        return shards
    parts = (shards[k : k + at_once] for k in range(0, len(shards), at_once))
    own = next((part for part in parts if part[0]["file"] == mine.get("file")), None)
    return everyone(_joined(directory, own) if own else {"rows": 0})


def _joined(directory: Path, shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One file of consecutive rows in the place of several."""
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
        raise not_kept(directory.parent, error) from error
    return {**first, "rows": num_rows, "sha256": written.sha256}


def _npy(first: np.ndarray, others: Iterator[np.ndarray], num_rows: int) -> Iterator[Any]:
    """The content of a .npy file, never more than a piece of it in memory."""
    yield _header(_storable(first).dtype, (num_rows, *first.shape[1:]))
    found = 0
    for piece in chain([first], others):
        found += len(piece)
        yield np.ascontiguousarray(_storable(piece)).reshape(-1).view(np.uint8).data
    if found != num_rows:
        raise RuntimeError(f"{found} rows of features where {num_rows} were to come")


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """How a .npy file of such an array begins."""
    start = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(start, {"descr": descr, "fortran_order": False, "shape": shape})
    return start.getvalue()


def _storable(rows: np.ndarray) -> np.ndarray:
    """NumPy files know no bfloat16: its bits are kept."""
    return rows.view(np.uint16) if rows.dtype == ml_dtypes.bfloat16 else rows


def commit(
    temporary: Path, directory: Path, shards: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> None:
    """Give the shards in `temporary` their manifest, and the whole its name: complete by one rename, or absent."""
    first = shards[0]
    manifest = Manifest(
        dtype=first["dtype"],
        computed=first["computed"],
        shape=list(first["shape"]),
        shards=[listed(shard) for shard in shards],
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
        raise not_kept(directory.parent, error) from error


def not_kept(root: Path, error: OSError) -> Refusal:
    """What is said where features cannot be written."""
    return Refusal(
        f"features cannot be kept in {root} ({error.strerror}).",
        fix="free space there, or set runtime.prefix_cache=off.",
        code=ExitCode.STORAGE,
    )


def removed(directory: Path) -> Refusal:
    """What is said where a set does not stay."""
    return Refusal(
        f"features in {directory} are removed as soon as they are there.",
        fix="end what removes them, or set runtime.prefix_cache=off.",
        code=ExitCode.STORAGE,
    )


def replace_shards(directory: Path, manifest: Manifest, new: Mapping[str, Shard]) -> Manifest:
    """Put new shards in the place of old ones, by file name: all of them at once. What the manifest says now."""
    shards = [new.get(old.file, old) for old in manifest.shards]
    manifest = manifest.model_copy(update={"shards": shards})
    failpoint("features.repaired", directory)
    write_atomically(directory / MANIFEST, manifest.encoded())
    for name in new:
        (directory / name).unlink(missing_ok=True)
    return manifest


def listed(shard: Mapping[str, Any]) -> Shard:
    """What the manifest says of a shard that was written."""
    return Shard(file=shard["file"], rows=shard["rows"], sha256=shard["sha256"])
