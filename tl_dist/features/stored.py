"""Features on disk: a directory `features/KEY` beside the runs, complete or absent.

It holds one .npy file of rows for each worker that computed them, and a manifest with the digest of each. It is
committed by one rename, and mended by one change of the manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf

from tl_dist.datasets import tensor_in_place
from tl_dist.durable import children, fsync_directory, server_time_ns, write_atomically, write_file
from tl_dist.failpoint import failpoint
from tl_dist.refusal import ExitCode, Refusal

MANIFEST = "manifest.json"
_LISTED = ("file", "rows", "sha256")
"""what the manifest says of each shard"""
_ORPHAN_S = 3600


@dataclass(frozen=True)
class FeatureSet:
    """The rows of one split on disk: row `example * num_views + view`."""

    directory: Path
    num_views: int

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / MANIFEST).read_text()))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._manifest["shape"])

    @property
    def shards(self) -> list[dict[str, Any]]:
        """What the manifest says of each: `file`, `rows` and `sha256`."""
        return list(self._manifest["shards"])

    @cached_property
    def _shards(self) -> list[np.ndarray]:
        return [np.load(self.directory / s["file"], mmap_mode="r") for s in self._manifest["shards"]]

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
        if self._manifest["dtype"] == "bfloat16":
            rows = rows.view(ml_dtypes.bfloat16)
        return rows.reshape(-1, self.num_views, *self.shape).astype(np.float32)

    def rows(self, examples: Any, views: Any) -> Any:
        """[rows, ...]: the features of one view of each example, as computed, however they are kept."""
        values = self._read_rows(examples * self.num_views + tf.cast(views, tf.int64))
        if self._manifest["dtype"] == "bfloat16":
            values = tf.bitcast(values, tf.bfloat16)
        values = tf.cast(values, self._manifest.get("computed", values.dtype))
        return tf.ensure_shape(values, [examples.shape[0], *self.shape])

    def damaged(self, rank: int, world_size: int) -> list[str]:
        """Names of the shards that are missing or changed, of this worker's share of them."""
        bad = []
        try:
            shards = self._manifest["shards"][rank::world_size]
        except (OSError, ValueError, KeyError):
            return [MANIFEST]
        for shard in shards:
            path = self.directory / shard["file"]
            if not path.is_file() or _sha256(path) != shard["sha256"]:
                bad.append(shard["file"])
        return bad


def sweep(directory: Path) -> None:
    """Remove files that the manifest does not name and that are old: of a worker that was killed while it mended."""
    named = {MANIFEST, *(shard["file"] for shard in json.loads((directory / MANIFEST).read_text())["shards"])}
    with suppress(OSError):
        strays = [path for path in children(directory) if path.name not in named]
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


def _npy(first: np.ndarray, others: Iterator[np.ndarray], num_rows: int) -> Iterator[Any]:
    """The content of a .npy file, never more than a piece of it in memory."""
    start = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(_storable(first))
    np.lib.format.write_array_header_1_0(start, {**header, "shape": (num_rows, *first.shape[1:])})
    yield start.getvalue()
    found = 0
    for piece in chain([first], others):
        found += len(piece)
        yield np.ascontiguousarray(_storable(piece)).reshape(-1).view(np.uint8).data
    if found != num_rows:
        raise RuntimeError(f"{found} rows of features where {num_rows} were to come")


def _storable(rows: np.ndarray) -> np.ndarray:
    """NumPy files know no bfloat16: its bits are kept."""
    return rows.view(np.uint16) if rows.dtype == ml_dtypes.bfloat16 else rows


def commit(
    temporary: Path, directory: Path, shards: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> None:
    """Give the shards in `temporary` their manifest, and the whole its name: complete by one rename, or absent."""
    manifest = {
        "dtype": shards[0]["dtype"],
        "computed": shards[0]["computed"],
        "shape": list(shards[0]["shape"]),
        "shards": [{key: shard[key] for key in _LISTED} for shard in shards],
        "facts": dict(facts),
    }
    try:
        failpoint("features.extracted", temporary)
        write_atomically(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
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


def replace_shards(found: FeatureSet, new: Mapping[str, Mapping[str, Any]]) -> None:
    """Put new shards in the place of old ones, by file name: all of them at once."""
    manifest = json.loads((found.directory / MANIFEST).read_text())
    manifest["shards"] = [
        {key: new[old["file"]][key] for key in _LISTED} if old["file"] in new else old
        for old in manifest["shards"]
    ]
    failpoint("features.mended", found.directory)
    write_atomically(found.directory / MANIFEST, json.dumps(manifest, indent=1).encode())
    for name in new:
        (found.directory / name).unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
