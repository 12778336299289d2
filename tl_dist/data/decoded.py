"""Decode and resize small images once, and read them from memory in every later epoch."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.config.data import STRETCHED, Square
from tl_dist.data.pipeline import as_written, plain
from tl_dist.datasets import ALIGNMENT, Source, Splits, pool_of, tensor_in_place
from tl_dist.datasets.arrays import ArrayStore

_ROWS_AT_ONCE = 64


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


def in_memory(splits: Splits, image_size: int, threads: int, *, square: Square = STRETCHED) -> Splits:
    """Decode the images of every split into the memory of this process, now; only those that a split uses."""
    parts = {name: pool_of(source) for name, source in splits.items()}
    decoded: dict[int, Source] = {}
    for pool, _ in parts.values():
        if id(pool) not in decoded:
            rows = np.unique(np.concatenate([at for other, at in parts.values() if other is pool]))
            images = _decoded(pool, rows, image_size, threads, square)
            decoded[id(pool)] = replace(pool, store=DecodedStore(images, pool))
    return {name: decoded[id(pool)].subset(at) for name, (pool, at) in parts.items()}


@tf.autograph.experimental.do_not_convert
def _decoded(
    source: Source, rows: NDArray[np.int64], image_size: int, threads: int, square: Square
) -> NDArray[np.uint8]:
    """Return the squares of these rows in aligned memory, uint8 [N, size, size, 3]; zeros for all other rows."""
    shape = (source.num_examples, image_size, image_size, 3)
    memory = np.zeros(math.prod(shape) + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    images = memory[start : start + math.prod(shape)].reshape(shape)
    read = plain(source, image_size, square)
    batches = (
        tf.data.Dataset.from_tensor_slices(rows)
        .map(lambda k: (k, read(k[None], k[None]).images[0]), num_parallel_calls=threads, deterministic=False)
        .batch(_ROWS_AT_ONCE)
        .prefetch(1)
        .with_options(as_written())
    )
    for at, pixels in batches.as_numpy_iterator():
        images[at] = pixels
    return images
