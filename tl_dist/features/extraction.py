"""Compute the outputs of the frozen prefix once, over all workers, and store them as a feature set (stored.py).

The name of a set is a digest of everything that determines its rows; every run with the same key reads no image.
"""

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import tensorflow as tf

from tl_dist.config.data import STRETCHED, Square
from tl_dist.data.pipeline import as_written
from tl_dist.data.resize import resize
from tl_dist.datasets import Source
from tl_dist.features import manifest as manifests
from tl_dist.features import stored
from tl_dist.features.classifiers import Stopped
from tl_dist.features.manifest import MANIFEST, Manifest
from tl_dist.features.stored import FeatureSet, storage_refusal
from tl_dist.features.views import apply_views, views_of
from tl_dist.files.atomic import open_directory
from tl_dist.files.private import make_private, refuse_unsafe
from tl_dist.parallel import DataParallel, rows_of
from tl_dist.refusal import ExitCode, Refusal

SCHEMA = 3  # raise it when every set must be computed again
ROWS_AT_ONCE, GPU_ROWS_AT_ONCE = 32, 256
_TRIES = 3  # since others may remove a set as soon as it is there
AGREE_S = 5.0
"""about how often workers agree on whether to stop and rank 0 reports: each time, all wait for the slowest"""

Say = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Prefix:
    """The frozen part of a model, and what determines its outputs."""

    compute: Callable[[Any], Any]
    """uint8 images [rows, size, size, 3] -> features [rows, ...], inside a graph"""
    image_size: int
    facts: Mapping[str, Any]
    """everything else that determines the outputs: frozen weights, backbone, cut, precision"""
    dtype: str = "computed"  # the number format in which outputs are stored; "computed": as they are computed
    square: Square = STRETCHED  # how images become squares
    shape: tuple[int, ...] | None = None  # of the features of one image, if it is known without computing any

    @property
    def geometry(self) -> dict[str, Any]:
        """Return how images become squares, for a key or a manifest; without what is as by default."""
        return {"image_size": self.image_size, **self.square.changes()}


@dataclass(frozen=True)
class Extraction:
    """The computation of a feature set over all workers, of which all call each method together."""

    source: Source
    prefix: Prefix
    augmentations: Sequence[str]
    root: Path
    split: str
    parallel: DataParallel
    stop_requested: Callable[[], bool]
    say: Say  # on rank 0, gets a record every few seconds
    threads: int = 2  # to decode images

    def features(self) -> FeatureSet:
        """Return the features of every view of every example, which all workers compute if they are not stored yet.

        Raises `Stopped`, and leaves no files, if asked to stop before the end.
        """
        directory = self.root / _key(self.source, self.prefix, self.augmentations)
        for _ in range(_TRIES):
            features = None
            refuse_unsafe(self.root, links=True)
            refuse_unsafe(directory)
            complete = self.repair if _all_agree(self.parallel, directory.is_dir()) else self.make
            complete(directory)
            # Another process may have removed the set by now, or a network file system may not show it here yet.
            with suppress(OSError, ValueError), open_directory(Path(os.path.realpath(self.root))):
                features = FeatureSet.open(directory, self.num_views)
            if _all_agree(self.parallel, features is not None) and features is not None:
                return features
        what = f"features in {directory} are removed as soon as they are there."
        fix = "end what removes them, or set runtime.prefix_cache=off."
        raise Refusal(what, fix=fix, code=ExitCode.STORAGE)

    @property
    def num_views(self) -> int:
        """Return how many views of an example are stored."""
        return views_of(self.augmentations)

    def make(self, directory: Path, old: Manifest | None = None, damaged: Sequence[str] = ()) -> None:
        """Compute a set into `directory`, complete or absent, instead of a damaged one.

        Of an `old` set only the damaged files are computed; the others become the new set's.
        """
        parallel = self.parallel
        temporary = directory.with_name(f".tmp-{directory.name}-{_same_text(parallel, uuid4().hex[:12])}")
        reused: list[dict[str, Any]] = []
        if parallel.rank == 0:
            try:
                make_private(directory.parent)
                temporary.mkdir(mode=0o700)
                owner = {"host": socket.gethostname(), "pid": os.getpid()}
                (temporary / "owner.json").write_text(json.dumps(owner))
            except OSError as error:
                raise storage_refusal(directory.parent, error) from error
            if old is not None:
                reused = _reuse(old, damaged, directory, temporary)
        reused = json.loads(_same_text(parallel, json.dumps(reused)))
        try:
            shards = self._shards(temporary, old, reused)
        except BaseException:
            if parallel.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if parallel.rank == 0:
            facts = {**self.prefix.facts, **self.prefix.geometry, "views": list(self.augmentations)}
            stored.commit(temporary, directory, shards, facts, replace=bool(damaged))
        _all_agree(parallel, here=True)

    def repair(self, directory: Path) -> None:
        """Check the existing set and compute damaged files again."""
        parallel = self.parallel
        manifest = self._manifest(directory)
        if manifest is not None and parallel.rank == 0:
            with suppress(OSError):
                os.utime(directory / MANIFEST)  # its last use, before anybody takes the set for old
        mine = [] if manifest is None else manifest.shards[parallel.rank :: parallel.world_size]
        own = [MANIFEST] if manifest is None else stored.damaged_shards(directory, manifest, mine)
        gathered = parallel.gather(json.dumps(own).encode())
        damaged = sorted({name for names in gathered for name in json.loads(names)})
        if damaged and parallel.rank == 0:
            note = f"features {directory}: {', '.join(damaged)} damaged; computed again"
            self.say({"event": "note", "text": note})
        if damaged:
            self.make(directory, None if MANIFEST in damaged else manifest, damaged)

    def _manifest(self, directory: Path) -> Manifest | None:
        """Return the manifest; None if it is damaged, or its rows are not the rows of these examples."""
        try:
            manifest = manifests.read(directory)
        except (OSError, ValueError):
            return None
        prefix, num_views = self.prefix, self.num_views
        dtype = prefix.dtype if prefix.dtype != "computed" else manifest.computed
        is_expected = (
            manifest.rows == self.source.num_examples * num_views
            and not any(shard.rows % num_views for shard in manifest.shards)
            and prefix.shape in (None, tuple(manifest.shape))
            and manifest.dtype == dtype
        )
        return manifest if is_expected else None

    def _shards(self, temporary: Path, old: Manifest | None, reused: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write the files that are missing, one on each worker at a time; return all."""
        parallel = self.parallel
        if old is None:
            share = rows_of(parallel.rank, parallel.world_size, self.source.num_examples)
            shard = self._shard(share, temporary / f"shard-{parallel.rank:04d}.npy")
            return stored.gather_shards(temporary, shard, parallel)
        shards = {shard["file"]: shard for shard in reused}
        ends = np.cumsum([shard.rows // self.num_views for shard in old.shards]).tolist()
        shares = dict(zip((s.file for s in old.shards), map(range, [0, *ends], ends), strict=False))
        missing = [name for name in shares if name not in shards]
        for first in range(0, len(missing), parallel.world_size):
            batch = missing[first : first + parallel.world_size]
            name = batch[parallel.rank] if parallel.rank < len(batch) else ""
            shard = self._shard(shares.get(name, range(0)), temporary / name)
            gathered = map(json.loads, parallel.gather(json.dumps(shard).encode()))
            shards |= {shard["file"]: shard for shard in gathered if shard["rows"]}
        return [shards[name] for name in shares]

    def _shard(self, share: range, path: Path) -> dict[str, Any]:
        """Write one file of a share's examples; return what the manifest says of it."""
        try:
            num_rows = len(share) * self.num_views
            return stored.write_shard(path, self._rows(share), num_rows, self.prefix.dtype)
        except OSError as error:
            raise storage_refusal(path.parents[1], error) from error

    def _rows(self, share: range) -> Iterator[np.ndarray]:
        """Yield the features of every view of a share, a batch at a time, while the next is being computed.

        Every worker makes the same number of rounds, whatever its share. All agree on whether to stop only every
        `AGREE_S`: in every round, all would wait for the slowest in each.
        """
        parallel = self.parallel
        shares = [json.loads(text) for text in parallel.gather(json.dumps(len(share)).encode())]
        compute = tf.function(self.prefix.compute, autograph=False, reduce_retracing=True)
        at_once = GPU_ROWS_AT_ONCE if tf.config.get_visible_devices("GPU") else ROWS_AT_ONCE
        size, square = self.prefix.image_size, self.prefix.square

        @tf.autograph.experimental.do_not_convert
        def every_view(index: Any) -> Any:
            image = tf.ensure_shape(resize(self.source.read(index)[0], size, square), [size, size, 3])
            copies = tf.tile(image[None], [self.num_views, 1, 1, 1])
            return apply_views(copies, self.augmentations, tf.range(self.num_views))

        examples = tf.data.Dataset.range(share.start, share.stop).map(
            every_view, num_parallel_calls=max(2, self.threads), deterministic=True
        )
        images = examples.unbatch().batch(at_once).prefetch(2).with_options(as_written())
        # Each batch is taken once the next has been started: a GPU computes that while this one is written.
        computed = (rows for rows, _ in pairwise(chain(map(compute, images), [None])))
        num_rounds = -(-max(shares) * self.num_views // at_once)
        total = sum(shares) * self.num_views
        done, agree_at, began = 0, 1, time.monotonic()
        for number in range(1, num_rounds + 1):
            rows = next(computed, None)
            if rows is not None:
                done += len(rows)
                yield rows.numpy()
            if number < min(agree_at, num_rounds):
                continue
            took = time.monotonic() - began
            totals = parallel.total({"done": done, "took_s": took, "stop": float(self.stop_requested())})
            if totals["stop"] > 0:
                raise Stopped
            # From the same sums on every worker, so that all have their next agreement in the same round.
            round_s = float(totals["took_s"]) / parallel.world_size / number
            agree_at = number + max(1, int(AGREE_S / max(round_s, 1e-6)))
            if parallel.rank == 0:
                all_done = int(totals["done"])
                rate = all_done / (time.monotonic() - began)
                record = {"event": "extraction", "split": self.split, "done": all_done, "total": total}
                self.say({**record, "examples_per_s": rate, "eta_s": (total - all_done) / rate})


def _reuse(old: Manifest, damaged: Sequence[str], directory: Path, temporary: Path) -> list[dict[str, Any]]:
    """Link the sound files of an old set into the new one; return those that could be."""
    reused = []
    for shard in old.shards:
        # What cannot be linked, or is gone by now, is computed again.
        with suppress(OSError):
            if shard.file not in damaged:
                os.link(directory / shard.file, temporary / shard.file)
                reused.append({**shard.model_dump(), **old.model_dump(include={"dtype", "computed", "shape"})})
    return reused


def is_kept(source: Source, prefix: Prefix, augmentations: Sequence[str], root: Path) -> bool:
    """Return whether the features seem to be stored already, without reading them."""
    return (root / _key(source, prefix, augmentations)).is_dir()


def _key(source: Source, prefix: Prefix, augmentations: Sequence[str]) -> str:
    facts = {"schema": SCHEMA, "data": source.fingerprint, "views": list(augmentations)}
    facts |= {**prefix.geometry, **prefix.facts}
    if prefix.dtype != "computed":
        facts["dtype"] = prefix.dtype
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _all_agree(parallel: DataParallel, here: bool) -> bool:
    """Return whether `here` holds on all workers: a network file system shows a new directory to some hosts later."""
    return bool(parallel.total({"here": float(here)})["here"] == parallel.world_size)


def _same_text(parallel: DataParallel, text: str) -> str:
    return parallel.gather(text.encode())[0].decode()
