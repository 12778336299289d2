"""Small images decoded and resized once, and read from memory or a local file in every epoch after that."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.data.pipeline import as_written, plain
from tl_dist.datasets import ALIGNMENT, Source, Splits, Subset, host_tensor, pool_of, tensor_in_place
from tl_dist.durable import fsync_directory, reason, temporary_name
from tl_dist.refusal import ExitCode, Refusal

SCHEMA = 1  # raise it when the same images must be decoded anew
_ROWS_AT_ONCE = 64
_GONE = ("encoded", "encoded_rows", "encoded_bytes", "location")


@dataclass(frozen=True, eq=False)
class DecodedSource:
    """`source` with its images uint8 [N, size, size, 3] at hand: the pixels that it gives, resized."""

    source: Any
    images: NDArray[np.uint8]
    reads_many: ClassVar[bool] = True

    def __getattr__(self, name: str) -> Any:
        if name in _GONE:
            raise AttributeError(name)
        return getattr(self.source, name)

    @cached_property
    def _tensors(self) -> tuple[Any, Any]:
        return tensor_in_place(self.images), host_tensor(np.asarray(self.source.labels, np.int32))

    def read(self, index: Any) -> tuple[Any, Any]:
        images, labels = self._tensors
        return tf.gather(images, index), tf.gather(labels, index)


def in_memory(splits: Splits, image_size: int, threads: int) -> Splits:
    """Every split with its images decoded now, into the memory of this process."""

    def decode(source: Source, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        shape = (source.num_examples, image_size, image_size, 3)
        memory = np.zeros(math.prod(shape) + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        images = memory[start : start + math.prod(shape)].reshape(shape)
        _fill(images, source, rows, threads)
        return images

    return _each_pool(splits, decode)


def on_disk(
    splits: Splits, image_size: int, threads: int, *, directory: Path, first: bool, wait: Callable[[], object]
) -> Splits:
    """The same in one file for each source below `directory`, kept for later runs and read through the page cache.

    The worker for which `first` holds makes the file, committed by one rename; `wait` returns once all workers are
    there. Refuses (74) where it cannot be written.
    """

    def decode(source: Source, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        text = f"{SCHEMA} {source.fingerprint} {image_size} {hashlib.sha256(rows.tobytes()).hexdigest()}"
        file = directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npy"
        if first and not file.exists():
            try:
                directory.mkdir(parents=True, exist_ok=True)
                temporary = temporary_name(file)
                shape = (source.num_examples, image_size, image_size, 3)
                images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
                try:
                    _fill(images, source, rows, threads)
                    images.flush()  # msync: the pages are on the disk before the name is
                    os.rename(temporary, file)
                finally:
                    temporary.unlink(missing_ok=True)
                fsync_directory(directory)
            except OSError as error:
                raise Refusal(
                    f"decoded images cannot be kept in {directory} ({reason(error)}).",
                    fix="free space there, or set runtime.decoded_images=off.",
                    code=ExitCode.STORAGE,
                ) from error
        wait()
        return np.load(file, mmap_mode="r")

    return _each_pool(splits, decode)


def _each_pool(splits: Splits, decode: Callable[[Source, NDArray[np.int64]], NDArray[np.uint8]]) -> Splits:
    """The splits over decoded sources; of a source only the examples that some split uses are decoded."""
    parts = {name: pool_of(source) for name, source in splits.items()}
    made: dict[int, DecodedSource] = {}
    for pool, _ in parts.values():
        if id(pool) not in made:
            rows = np.unique(np.concatenate([at for other, at in parts.values() if other is pool]))
            made[id(pool)] = DecodedSource(pool, decode(pool, rows))
    return {name: Subset(made[id(pool)], at) for name, (pool, at) in parts.items()}


@tf.autograph.experimental.do_not_convert
def _fill(images: NDArray[np.uint8], source: Source, rows: NDArray[np.int64], threads: int) -> None:
    read = plain(source, images.shape[1])
    one = read.each or read.rows
    assert one is not None
    batches = (
        tf.data.Dataset.from_tensor_slices(rows)
        .map(lambda k: (k, one(k, k)[0]), num_parallel_calls=threads, deterministic=False)
        .batch(_ROWS_AT_ONCE)
        .prefetch(1)
        .with_options(as_written())
    )
    for at, decoded in batches:
        images[at.numpy()] = decoded.numpy()
