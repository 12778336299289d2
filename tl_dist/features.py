"""Run the frozen prefix once, over all workers; its outputs are just another source of examples.

They are kept as a feature set (see feature_set.py) whose name is a digest of everything that determines the rows:
frozen weights, cut, preprocessing, image size, number format, data and views. Any run with the same key reads it and no
image.

An augmentation with few outcomes (flips, right angles) is kept as that many views of each example, and the view that
a position draws is the one that the pipeline would have drawn: training sees the same features as without the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import tensorflow as tf

from tl_dist.data.augment import VIEWS, drawn_view, resize
from tl_dist.data.pipeline import Read
from tl_dist.datasets import Source, host_tensor
from tl_dist.feature_set import MANIFEST, FeatureSet, commit, replace_shards, write_shard
from tl_dist.parallel import DataParallel, rows_of

SCHEMA = 2  # raise it when the same key must be computed anew
ROWS_AT_ONCE = 32
REPORT_S = 2.0

Say = Callable[[Mapping[str, Any]], None]


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
        commit(temporary, directory, [s for s in shards if s["rows"]], facts)
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
    return write_shard(path, pieces)


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
            replace_shards(found, {old: shard for old, shard in replaced if old is not None})
        _wait(parallel)
    return True


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
