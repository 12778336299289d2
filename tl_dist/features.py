"""Run the frozen prefix once, over all workers; its outputs are just another source of examples.

A feature set is a directory `features/KEY` beside the runs: one .npy file of rows for each worker that computed it,
and a manifest with the digest of each. KEY is a digest of everything that determines the rows: frozen weights, cut,
preprocessing, image size, number format, data and views. It is committed by one rename, so it is complete or absent,
and any run with the same key reads it and no image.

An augmentation with few outcomes (flips, right angles) is kept as that many views of each example, and the view that
a position draws is the one that the pipeline would have drawn: training sees the same features as without the cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any
from uuid import uuid4

import ml_dtypes
import numpy as np
import tensorflow as tf

from tl_dist.data.augment import VIEWS, drawn_view, resize
from tl_dist.data.pipeline import Read
from tl_dist.datasets import Source, host_tensor
from tl_dist.durable import fsync_directory, write_atomically, write_file
from tl_dist.failpoint import failpoint
from tl_dist.parallel import DataParallel, rows_of
from tl_dist.refusal import ExitCode, Refusal

SCHEMA = 2  # raise it when the same key must be computed anew
IN_MEMORY_BYTES = (
    2 << 30
)  # a larger set is read from its files, through the page cache that all workers share
MANIFEST = "manifest.json"
_LISTED = ("file", "rows", "sha256")
"""what the manifest says of each shard"""
ROWS_AT_ONCE = 32
REPORT_S = 2.0

Say = Callable[[Mapping[str, Any]], None]


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
        shards = self._shards
        if sum(shard.nbytes for shard in shards) <= IN_MEMORY_BYTES:
            everything = host_tensor(np.concatenate(shards))
            return lambda rows: tf.gather(everything, rows)
        starts = np.cumsum([0, *(len(shard) for shard in shards)])

        def read(rows: np.ndarray) -> np.ndarray:
            holders = np.searchsorted(starts, rows, side="right") - 1
            return np.stack([shards[k][row - starts[k]] for k, row in zip(holders, rows, strict=True)])

        stored = tf.as_dtype(shards[0].dtype)
        return lambda rows: tf.numpy_function(read, [rows], stored, stateful=False)

    def array(self) -> np.ndarray:
        """float32 [examples, views, ...]: everything, in memory."""
        rows = np.concatenate(self._shards)
        if self._manifest["dtype"] == "bfloat16":
            rows = rows.view(ml_dtypes.bfloat16)
        return rows.reshape(-1, self.num_views, *self.shape).astype(np.float32)

    def rows(self, examples: Any, views: Any) -> Any:
        """[rows, ...]: the features of one view of each example, in the type that they were computed in."""
        values = self._read_rows(examples * self.num_views + tf.cast(views, tf.int64))
        if self._manifest["dtype"] == "bfloat16":
            values = tf.bitcast(values, tf.bfloat16)  # NumPy files know no bfloat16: its bits are kept
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


@dataclass(frozen=True)
class Prefix:
    """The frozen part of a model, and what determines its outputs."""

    compute: Callable[[Any], Any]
    """uint8 images [rows, size, size, 3] -> features [rows, ...], inside a graph"""
    image_size: int
    facts: Mapping[str, Any]
    """frozen weights, backbone, cut, precision: whatever else determines the outputs"""


def views_of(augmentations: Sequence[str]) -> int:
    """How many views of an example these augmentations can make."""
    return prod(VIEWS[name].num for name in augmentations)


def drawn_views(augmentations: Sequence[str], seed: int, positions: Any) -> Any:
    """The view that each position draws, int32 [rows]; the draws are those of the pipeline."""
    view = tf.zeros(tf.shape(positions), tf.int32)
    for name in augmentations:
        view = view * VIEWS[name].num + drawn_view(seed, positions, name)
    return view


def apply_views(images: Any, augmentations: Sequence[str], view: Any) -> Any:
    """Each image as augmented when `drawn_views` gives `view`, int32 [rows]."""
    below = views_of(augmentations)
    for name in augmentations:
        below //= VIEWS[name].num
        images = VIEWS[name].apply(images, (view // below) % VIEWS[name].num)
    return images


def in_views(read: Read, augmentations: Sequence[str]) -> Read:
    """The same images in every view that these augmentations can make: [rows, views, ...]; as they are without any."""
    num_views = views_of(augmentations)
    if num_views == 1:
        return read

    def finish(images: Any, positions: Any) -> Any:
        images = read.finish(images, positions)
        all_rows = tf.ones_like(positions, tf.int32)
        return tf.stack([apply_views(images, augmentations, view * all_rows) for view in range(num_views)], 1)

    return replace(read, finish=finish)


def reader_of_views(features: FeatureSet, source: Source, held: np.ndarray | None = None) -> Read:
    """Cached examples for evaluation: the features of every view of each, [rows, views, ...]; `held` as in `reader`."""
    labels = host_tensor(np.asarray(source.labels, np.int32))
    examples = None if held is None else host_tensor(np.asarray(held, np.int64))

    def rows(indices: Any, positions: Any) -> tuple[Any, Any]:
        kept = indices if examples is None else tf.gather(examples, indices)
        views = [features.rows(kept, tf.zeros_like(kept) + view) for view in range(features.num_views)]
        return tf.stack(views, axis=1), tf.gather(labels, indices)

    return Read(rows=rows)


def reader(
    features: FeatureSet,
    source: Source,
    augmentations: Sequence[str],
    seed: int,
    held: np.ndarray | None = None,
) -> Read:
    """Cached training examples: the features of the view that the position draws.

    `held` says which example of the set each example of the source is; default: the same one.
    """
    labels = host_tensor(np.asarray(source.labels, np.int32))
    examples = None if held is None else host_tensor(np.asarray(held, np.int64))

    def rows(indices: Any, positions: Any) -> tuple[Any, Any]:
        kept = indices if examples is None else tf.gather(examples, indices)
        return features.rows(kept, drawn_views(augmentations, seed, positions)), tf.gather(labels, indices)

    return Read(rows=rows)


def cached(
    source: Source,
    prefix: Prefix,
    augmentations: Sequence[str],
    *,
    root: Path,
    split: str,
    parallel: DataParallel,
    stop_requested: Callable[[], bool],
    say: Say,
) -> FeatureSet | None:
    """The features of every view of every example; computed by all workers where they are not there yet.

    `say` gets a record now and then, on rank 0. None when asked to stop before the end; nothing is left then.
    """
    num_views = views_of(augmentations)
    key = _key(source, prefix, augmentations)
    directory = root / key
    found = FeatureSet(directory, num_views)
    if _agreed(parallel, directory.is_dir()):
        own = json.dumps(found.damaged(parallel.rank, parallel.world_size)).encode()
        bad = sorted({name for names in parallel.gather(own) for name in json.loads(names)})
        if bad and parallel.rank == 0:
            say({"event": "note", "text": f"features {directory}: {', '.join(bad)} damaged; computed again"})
        if MANIFEST not in bad:
            if bad and not _mend(
                found, bad, source, prefix, augmentations, split, parallel, stop_requested, say
            ):
                return None
            if parallel.rank == 0:
                with suppress(OSError):
                    os.utime(directory / MANIFEST)  # says when it was last used
            return FeatureSet(directory, num_views)
        _wait(parallel)
        if parallel.rank == 0:
            shutil.rmtree(directory, ignore_errors=True)
    temporary = root / f".tmp-{key}-{_same_text(parallel, uuid4().hex[:12])}"
    if parallel.rank == 0:
        temporary.mkdir(parents=True)
        owner = {"host": socket.gethostname(), "pid": os.getpid()}
        (temporary / "owner.json").write_text(json.dumps(owner))
    _wait(parallel)
    share = rows_of(parallel.rank, parallel.world_size, source.num_examples)
    tell = say if parallel.rank == 0 else lambda record: None
    path = temporary / f"shard-{parallel.rank:04d}.npy"
    shard = _extract(source, prefix, augmentations, share, path, split, parallel, stop_requested, tell)
    if shard is None:
        if parallel.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        return None
    shards = [json.loads(text) for text in parallel.gather(json.dumps(shard).encode())]
    if parallel.rank == 0:
        facts = {**prefix.facts, "image_size": prefix.image_size, "views": list(augmentations)}
        _commit(temporary, directory, [s for s in shards if s["rows"]], facts)
    _wait(parallel)
    return FeatureSet(directory, num_views)


def _extract(
    source: Source,
    prefix: Prefix,
    augmentations: Sequence[str],
    share: range,
    path: Path,
    split: str,
    parallel: DataParallel,
    stop_requested: Callable[[], bool],
    say: Say,
) -> dict[str, Any] | None:
    """Compute this worker's examples into one file; what the manifest says of it, or None when asked to stop."""
    shares = [json.loads(text) for text in parallel.gather(json.dumps(len(share)).encode())]
    num_views = views_of(augmentations)
    batches = _images(source, prefix.image_size, augmentations, share)
    compute = tf.function(prefix.compute, reduce_retracing=True)
    pieces: list[np.ndarray] = []
    # Every worker makes the same number of rounds, whatever its share: the stop is agreed on in each.
    iterator = iter(batches)
    largest = max(shares) * num_views
    total = sum(shares) * num_views
    done, began = 0, time.monotonic()
    told = began
    for _ in range(-(-largest // ROWS_AT_ONCE)):
        images = next(iterator, None)
        if images is not None:
            pieces.append(compute(images).numpy())
            done += len(pieces[-1])
        totals = parallel.total({"done": done, "stop": float(stop_requested())})
        if totals["stop"] > 0:
            return None
        now = time.monotonic()
        if now - told >= REPORT_S or totals["done"] == total:
            told = now
            rate = float(totals["done"]) / (now - began)
            say(
                {
                    "event": "extraction",
                    "split": split,
                    "done": int(totals["done"]),
                    "total": total,
                    "examples_per_s": rate,
                    "eta_s": (total - float(totals["done"])) / rate,
                }
            )
    return _write_shard(path, pieces)


def _mend(
    found: FeatureSet,
    bad: Sequence[str],
    source: Source,
    prefix: Prefix,
    augmentations: Sequence[str],
    split: str,
    parallel: DataParallel,
    stop_requested: Callable[[], bool],
    say: Say,
) -> bool:
    """Compute the damaged shards again, one on each worker at a time; False when asked to stop.

    A new shard has another name, and the set changes to it with the manifest: killed before, the set is as it was.
    """
    begins, begin = {}, 0
    for shard in found.shards:
        begins[shard["file"]] = begin
        begin += shard["rows"]
    rows = {shard["file"]: shard["rows"] for shard in found.shards}
    tag = _same_text(parallel, uuid4().hex[:8])
    tell = say if parallel.rank == 0 else lambda record: None
    for first in range(0, len(bad), parallel.world_size):
        some = bad[first : first + parallel.world_size]
        mine, path, share = None, found.directory, range(0)
        if parallel.rank < len(some):
            mine = some[parallel.rank]
            path = found.directory / f"{mine[:10]}-{tag}.npy"
            ends = (begins[mine], begins[mine] + rows[mine])
            share = range(*(end // found.num_views for end in ends))
        new = _extract(source, prefix, augmentations, share, path, split, parallel, stop_requested, tell)
        if new is None:
            return False
        replaced = [json.loads(text) for text in parallel.gather(json.dumps([mine, new]).encode())]
        if parallel.rank == 0:
            _replace(found, {old: shard for old, shard in replaced if old is not None})
        _wait(parallel)
    return True


def _replace(found: FeatureSet, new: Mapping[str, Mapping[str, Any]]) -> None:
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


def _images(source: Source, image_size: int, augmentations: Sequence[str], share: range) -> tf.data.Dataset:
    """Every view of every example of a share, in the order of the rows; uint8 [rows, size, size, 3]."""
    num_views = views_of(augmentations)

    def views(index: Any) -> Any:
        image = resize(source.read(index)[0], image_size)
        image = tf.ensure_shape(image, [image_size, image_size, 3])
        copies = tf.tile(image[None], [num_views, 1, 1, 1])
        return apply_views(copies, augmentations, tf.range(num_views))

    examples = tf.data.Dataset.range(share.start, share.stop).map(
        views, num_parallel_calls=2, deterministic=True
    )
    return examples.unbatch().batch(ROWS_AT_ONCE).prefetch(2)


def _write_shard(path: Path, pieces: Sequence[np.ndarray]) -> dict[str, Any]:
    if not pieces:
        return {"rows": 0}
    rows = np.concatenate(pieces)
    dtype = rows.dtype.name
    if rows.dtype == ml_dtypes.bfloat16:
        rows = rows.view(np.uint16)
    header = np.lib.format.header_data_from_array_1_0(rows)
    written = write_file(path, _npy(header, rows))
    return {
        "file": path.name, "rows": len(rows), "sha256": written.sha256, "dtype": dtype, "shape": rows.shape[1:],
    }  # fmt: skip


def _npy(header: Mapping[str, Any], rows: np.ndarray) -> Iterator[Any]:
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(start, dict(header))
    yield start.getvalue()
    yield np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data


def _commit(
    temporary: Path, directory: Path, shards: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> None:
    manifest = {
        "dtype": shards[0]["dtype"],
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
        raise Refusal(
            f"features cannot be kept in {directory.parent} ({error.strerror}).",
            fix="free space there, or set runtime.prefix_cache=off.",
            code=ExitCode.STORAGE,
        ) from error


def is_kept(source: Source, prefix: Prefix, augmentations: Sequence[str], root: Path) -> bool:
    """Whether the features are there already, as far as one can tell without reading them."""
    return (root / _key(source, prefix, augmentations)).is_dir()


def _key(source: Source, prefix: Prefix, augmentations: Sequence[str]) -> str:
    facts = {
        "schema": SCHEMA,
        "data": source.fingerprint,
        "image_size": prefix.image_size,
        "views": list(augmentations),
        **prefix.facts,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _agreed(parallel: DataParallel, here: bool) -> bool:
    """Whether all workers see it: on a network filesystem one may see a new directory later than another."""
    return bool(parallel.total({"here": float(here)})["here"] == parallel.world_size)


def _wait(parallel: DataParallel) -> None:
    parallel.total({"here": 1.0})


def _same_text(parallel: DataParallel, text: str) -> str:
    return parallel.gather(text.encode())[0].decode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
