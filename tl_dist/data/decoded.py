"""Decode and resize small images once, and read them from memory or a local file in every later epoch."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.data.pipeline import as_written, plain
from tl_dist.datasets import ALIGNMENT, Source, Splits, pool_of, tensor_in_place
from tl_dist.datasets.arrays import ArrayStore
from tl_dist.files.atomic import children, fsync_directory, reason, server_time_ns
from tl_dist.files.failpoint import failpoint
from tl_dist.files.private import make_private, refuse_unsafe
from tl_dist.parallel import DataParallel, rows_of
from tl_dist.refusal import ExitCode, Refusal

SCHEMA = 2  # increase it when the same images must be decoded again
_ROWS_AT_ONCE = 64
_BATCHES_A_ROUND = 4
_UNFINISHED = ".tmp-"
_LEFTOVER_S = 86400.0
Images = Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]  # rows, and their pixels


@dataclass(frozen=True, eq=False)
class DecodedStore(ArrayStore):
    """The resized pixels of a source, uint8 [N, size, size, 3]. It counts as the same data set."""

    decoded: Source

    def fingerprint(self, source: Source) -> str:
        """Return the fingerprint of the source that was decoded."""
        return self.decoded.fingerprint

    @cached_property
    def tensor(self) -> Any:
        """Return the images as a tensor that shares their memory."""
        return tensor_in_place(self.images)


def in_memory(splits: Splits, image_size: int, threads: int, *, crop_fraction: float | None = None) -> Splits:
    """Decode the images of every split into the memory of this process, now."""

    def decode(source: Source, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        shape = (source.num_examples, image_size, image_size, 3)
        memory = np.zeros(math.prod(shape) + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        images = memory[start : start + math.prod(shape)].reshape(shape)
        for at, pixels in _decoded(source, image_size, threads, crop_fraction, rows):
            images[at] = pixels
        return images

    return _each_pool(splits, decode)


def on_disk(
    splits: Splits,
    image_size: int,
    threads: int,
    *,
    crop_fraction: float | None = None,
    directory: Path,
    parallel: DataParallel,
    stop_requested: Callable[[], bool],
) -> Splits:
    """Decode the images of each source into one file below `directory`, kept for later runs; read by the page cache.

    Every worker decodes its share, and the file gets its name once it is complete. All workers call `stop_requested`
    after each round, and stop if it is true for one of them. Refuses if the file cannot be written (74), and when
    stopped (75).
    """

    def decode(source: Source, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        text = f"{SCHEMA} {source.fingerprint} {image_size} {hashlib.sha256(rows.tobytes()).hexdigest()}"
        text += "" if crop_fraction is None else f" {crop_fraction}"
        file = directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npy"
        first = parallel.rank == 0
        refuse_unsafe(directory, links=True)
        if parallel.total({"missing": float(first and not file.exists())})["missing"]:
            # One name for all runs that make this file, now or after a kill: they write the same bytes.
            temporary = file.with_name(f"{_UNFINISHED}{file.name}")
            try:
                if first:
                    _sweep(directory)
                    _lay_out(temporary, source.num_examples, image_size)
                parallel.total({"laid out": 1.0})
                images_of = partial(_decoded, source, image_size, threads, crop_fraction)
                start = len(_header(source.num_examples, image_size))
                _write_share(temporary, start, images_of, rows, parallel, stop_requested)
                if first:
                    os.rename(temporary, file)
                    fsync_directory(directory)
            except BaseException as error:
                with suppress(OSError):
                    temporary.unlink()
                if not isinstance(error, OSError):
                    raise
                raise Refusal(
                    f"decoded images cannot be kept in {directory} ({reason(error)}).",
                    fix="free space there, or set runtime.decoded_images=off.",
                    code=ExitCode.STORAGE,
                ) from error
            parallel.total({"named": 1.0})
        return np.load(file, mmap_mode="r")

    return _each_pool(splits, decode)


def _lay_out(file: Path, num_examples: int, image_size: int) -> None:
    """Create the file with its header and space for every image; existing images will be overwritten."""
    header = _header(num_examples, image_size)
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _write_at(fd, header, 0)
        os.ftruncate(fd, len(header) + num_examples * image_size**2 * 3)
    finally:
        os.close(fd)


def _write_share(
    file: Path,
    start: int,
    images_of: Callable[[NDArray[np.int64]], Images],
    rows: NDArray[np.int64],
    parallel: DataParallel,
    stop_requested: Callable[[], bool],
) -> None:
    """Decode this worker's share of `rows` into the file, whose images begin at the byte `start`.

    All shares are on the disk when this returns. The file is written, never mapped: so a full disk is an error, not a
    signal, and no two hosts write back the same page.
    """
    share = rows_of(parallel.rank, parallel.world_size, len(rows))
    batches = images_of(rows[share.start : share.stop])
    largest = len(rows_of(0, parallel.world_size, len(rows)))
    fd = os.open(file, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for _ in range(math.ceil(largest / (_ROWS_AT_ONCE * _BATCHES_A_ROUND))):
            for at, images in islice(batches, _BATCHES_A_ROUND):
                for row, image in zip(at.tolist(), images, strict=True):
                    _write_at(fd, image, start + row * image.nbytes)
            failpoint("decoded.round")
            if parallel.total({"stop": float(stop_requested())})["stop"]:
                raise Refusal(
                    "decoding the images was stopped.",
                    fix="run the same command again.",
                    code=ExitCode.REQUEUE,
                )
        os.fsync(fd)
    finally:
        os.close(fd)
    parallel.total({"written": 1.0})


def _header(num_examples: int, image_size: int) -> bytes:
    start = io.BytesIO()
    shape = (num_examples, image_size, image_size, 3)
    np.lib.format.write_array_header_1_0(start, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return start.getvalue()


def _write_at(fd: int, data: Any, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _sweep(directory: Path) -> None:
    """Create the directory, and remove what interrupted runs left there if it is old by the file server's clock."""
    make_private(directory)
    before_ns = server_time_ns(directory) - _LEFTOVER_S * 1e9
    for path in children(directory):
        with suppress(FileNotFoundError):
            if path.name.startswith(_UNFINISHED) and path.lstat().st_mtime_ns < before_ns:
                path.unlink()


def _each_pool(splits: Splits, decode: Callable[[Source, NDArray[np.int64]], NDArray[np.uint8]]) -> Splits:
    """Return the splits with decoded sources; only the examples that a split uses are decoded."""
    parts = {name: pool_of(source) for name, source in splits.items()}
    decoded: dict[int, Source] = {}
    for pool, _ in parts.values():
        if id(pool) not in decoded:
            rows = np.unique(np.concatenate([at for other, at in parts.values() if other is pool]))
            decoded[id(pool)] = replace(pool, store=DecodedStore(decode(pool, rows), pool))
    return {name: decoded[id(pool)].subset(at) for name, (pool, at) in parts.items()}


@tf.autograph.experimental.do_not_convert
def _decoded(
    source: Source, image_size: int, threads: int, crop_fraction: float | None, rows: NDArray[np.int64]
) -> Images:
    """Yield the rows of decoded images and their pixels, in any order."""
    read = plain(source, image_size, crop_fraction)
    batches = (
        tf.data.Dataset.from_tensor_slices(rows)
        .map(
            lambda k: (k, read.batch(k[None], k[None])[0][0]), num_parallel_calls=threads, deterministic=False
        )
        .batch(_ROWS_AT_ONCE)
        .prefetch(1)
        .with_options(as_written())
    )
    return batches.as_numpy_iterator()
