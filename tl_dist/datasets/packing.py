"""Pack a data set into the files of `formats/packed`: by several processes, shard by shard, each committed when whole.

The same command resumes where it was stopped. Several commands at once, on one host or on many, divide the shards among
them by locks, which are freed when the holder dies. Each waits for all shards, and the first to finish writes the
manifest. On a file system without locks, shards are packed more than once, to the same bytes.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from tl_dist.datasets import Source, Splits
from tl_dist.datasets.example_proto import serialize
from tl_dist.datasets.files import unusable
from tl_dist.datasets.formats.packed import FORMAT, MANIFEST
from tl_dist.datasets.headers import checked
from tl_dist.datasets.preprocess import VERSION, rgb
from tl_dist.datasets.processes import process_pool
from tl_dist.datasets.shard_index import framed
from tl_dist.datasets.store import PixelStore
from tl_dist.files.atomic import fsync_directory, reason, temporary_name, write_atomically, write_file
from tl_dist.files.failpoint import failpoint
from tl_dist.files.packages import locked
from tl_dist.refusal import ExitCode, Refusal

ROWS = 4096
"""number of examples in a shard"""
Progress = Callable[[int, int], None]
"""called with (examples packed, total)"""


class _Shard(NamedTuple):
    name: str
    split: str
    rows: range


def pack(
    splits: Splits,
    directory: Path,
    *,
    size: int | None = None,
    quality: int = 95,
    workers: int = 1,
    rows: int = ROWS,
    part: tuple[int, int] = (0, 1),
    progress: Progress = lambda done, total: None,
) -> None:
    """Write the splits to `directory`, or the shards that are missing there.

    `part` is (index, count) of commands that were started together: each begins at another shard.

    With `size`, an image whose shorter side exceeds it is scaled down to it (Pillow's Lanczos filter) and encoded as
    JPEG of `quality`; all others keep their bytes. Images in memory become PNG. Refuses (64) a directory that holds
    something else, or another job; (65) an image that cannot be read or scaled.
    """
    shards = [
        _Shard(f"{split}-{k:05}-of-{-(-source.num_examples // rows):05}", split, range(first, last))
        for split, source in splits.items()
        for k, first in enumerate(range(0, source.num_examples, rows))
        for last in (min(first + rows, source.num_examples),)
    ]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _claim(directory, splits, {"size": size, "quality": quality if size else None, "rows": rows})
        job = _Job(dict(splits), directory, size, quality)
        first = len(shards) * part[0] // part[1]
        _run(job, shards[first:] + shards[:first], workers, progress)
        _commit(directory, splits, shards)
    except OSError as error:
        what = f"{directory} cannot be written: {reason(error)}."
        fix = "free space there and run the same command again."
        raise Refusal(what, fix=fix, code=ExitCode.STORAGE) from error


def _claim(directory: Path, splits: Splits, options: dict[str, Any]) -> None:
    """Record the job in the directory if this is its first command; refuse (64) another job than the recorded one."""
    facts = {"format": FORMAT, **options, "sources": {name: s.fingerprint for name, s in splits.items()}}
    if options["size"]:
        # Only scaled images are decoded here; the others are when they are read.
        facts["decoding"] = VERSION
    if digests := {name: d for name, source in splits.items() if (d := source.annotations.digest)}:
        facts["annotations"] = digests
    job = directory / "job.json"
    if not job.exists():
        strangers = [p.name for p in directory.iterdir() if not p.name.startswith(".tmp-")]
        if strangers and not job.exists():
            raise _occupied(directory, f"it holds {sorted(strangers)[0]}")
        with suppress(FileExistsError):
            write_atomically(job, json.dumps(facts).encode(), exclusive=True)
    try:
        recorded = json.loads(job.read_bytes())
    except ValueError:
        recorded = {}
    if different := sorted(key for key in facts if facts[key] != recorded.get(key)):
        raise _occupied(directory, f"another set is packed there: {', '.join(different)} differ")


def _occupied(directory: Path, why: str) -> Refusal:
    return Refusal(f"{directory} is not free: {why}.", fix="name an empty directory.", code=ExitCode.USAGE)


class _Job(NamedTuple):
    sources: dict[str, Source]
    directory: Path
    size: int | None
    quality: int


def _run(job: _Job, shards: list[_Shard], workers: int, progress: Progress) -> None:
    total = sum(len(shard.rows) for shard in shards)
    missing = {s: None for s in shards if not (job.directory / f"{s.name}.json").exists()}

    def finish(*shards: _Shard) -> None:
        for shard in shards:
            missing.pop(shard, None)
        progress(total - sum(len(s.rows) for s in missing), total)

    finish()
    if workers == 1 or len(missing) < 2:
        _start(job)
        for wait in (False, True):
            for shard in list(missing):
                if _pack_shard(shard, wait):
                    finish(shard)
        return
    # Not fork: the caller may run threads.
    with process_pool(min(workers, len(missing)), "spawn", _start, job) as pool:
        for wait in (False, True):
            futures = {pool.submit(_pack_shard, shard, wait): shard for shard in missing}
            for future in as_completed(futures):
                if future.result():
                    finish(futures[future])


_job: _Job


def _start(job: _Job) -> None:
    global _job
    _job = job


def _pack_shard(shard: _Shard, wait: bool) -> bool:
    """Pack a shard unless it exists, or another process packs it and `wait` is false; returns if it exists."""
    commit, lock = _job.directory / f"{shard.name}.json", _job.directory / f".tmp-{shard.name}.lock"
    if commit.exists():
        return True
    with locked(lock, wait=wait) as is_locked:
        if is_locked and not commit.exists():
            try:
                _write_shard(_job, shard)
            except FileNotFoundError:
                # Without locks others pack it too, and the first to finish deletes temporary files: a commit suffices.
                if not commit.exists():
                    raise
    return commit.exists()


def _write_shard(job: _Job, shard: _Shard) -> None:
    source, directory = job.sources[shard.split], job.directory
    ids = [source.ids[k] for k in shard.rows]

    def records() -> Iterator[bytes]:
        for k, name in zip(shard.rows, ids, strict=True):
            label = int(source.labels[k])
            features: dict[str, bytes | int] = {
                "image/encoded": _image(source, k, job.size, job.quality),
                "image/class/label": label,
                "image/class/text": os.fsencode(source.in_words(source.truth[k])),
                "image/filename": os.fsencode(name),
            }
            failpoint("pack.image", directory)
            yield framed(serialize(features))

    path = directory / f"{shard.name}.tfrecord"
    temporary = temporary_name(path)
    written = write_file(temporary, records())
    temporary.chmod(0o644)  # a data set is to be shared
    os.rename(temporary, path)
    fsync_directory(directory)
    annotations = source.annotations.of_rows(np.asarray(shard.rows))
    _publish(directory / f"{shard.name}.json", {"size": written.size, "ids": ids, **annotations.as_json()})


def _publish(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content).encode())
    path.chmod(0o644)


def _image(source: Source, k: int, size: int | None, quality: int) -> bytes:
    try:
        content = source.encoded_bytes(k) if source.is_encoded else _png(source, k)
        return content if size is None else _scaled(content, size, quality)
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        raise unusable(
            f"{source.ids[k]} cannot be packed: {'is no image that can be decoded' if unknown else reason(error)}",
            "repair or delete the image, then run the same command again",
        ) from error


def _png(source: Source, k: int) -> bytes:
    pixels = source.store.kept(source.row(k)) if isinstance(source.store, PixelStore) else None
    if pixels is None:
        raise ValueError("the images of this data set are kept nowhere")
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def _scaled(content: bytes, size: int, quality: int) -> bytes:
    header = checked(content)  # before Pillow, whose header readers have no bound
    sides = header.width, header.height
    scale = size / min(sides)
    if scale >= 1:
        rgb(content)  # so that a damaged image fails now, not in training
        return content
    width, height = (max(size, round(side * scale)) for side in sides)
    # A JPEG is decoded at the scale that is needed.
    pixels = rgb(content, at_least=(2 * width, 2 * height))
    if (pixels.shape[0] > pixels.shape[1]) != (height > width):
        width, height = height, width
    target = io.BytesIO()
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    resized.save(target, "JPEG", quality=quality)
    return target.getvalue()


def _commit(directory: Path, splits: Splits, shards: list[_Shard]) -> None:
    """Write the manifest of all shards with their digests; its content is the same from any process."""
    lock, manifest = directory / ".tmp-manifest.lock", directory / MANIFEST
    with locked(lock):
        # Files of commands that were killed, and locks of shards that exist.
        ours = re.compile(r"\.tmp-(?!job\.json|manifest\.lock).+(\.lock|-[0-9a-f]{32})")
        for leftover in directory.glob(".tmp-*"):
            if ours.fullmatch(leftover.name):
                leftover.unlink(missing_ok=True)
        digests: dict[str, dict[str, str]] = {name: {} for name in splits}
        for shard in shards:
            facts = (directory / f"{shard.name}.json").read_bytes()
            digests[shard.split][shard.name] = hashlib.sha256(facts).hexdigest()
        content = {"format": FORMAT, "class_names": list(splits["train"].class_names), "splits": digests}
        try:
            _publish(manifest, content)
        except FileNotFoundError:
            if not manifest.exists():  # without locks, another command wrote it
                raise
    lock.unlink(missing_ok=True)
