"""Concatenate several sources into one."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Source, host_tensor
from tl_dist.datasets.annotations import Annotations
from tl_dist.datasets.store import EncodedStore, Location, PixelStore, Store


def concatenated(parts: Sequence[Source]) -> Source:
    """Concatenate sources with the same classes. Only annotations that all of them have are kept.

    A part without weights has weights of 1.
    """
    encoded = all(part.is_encoded for part in parts)
    return Source(
        _JoinedFiles(parts) if encoded else _JoinedPixels(parts),
        np.concatenate([part.labels for part in parts]),
        [name for part in parts for name in part.ids],
        parts[0].class_names,
        Annotations.joined([part.annotations for part in parts], [part.num_examples for part in parts]),
    )


@dataclass(frozen=True, eq=False)
class _Joined(Store):
    parts: Sequence[Source]

    def fingerprint(self, source: Source) -> str:
        return hashlib.sha256(" ".join(part.fingerprint for part in self.parts).encode()).hexdigest()

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(part.num_examples for part in self.parts)])

    def place(self, row: int) -> tuple[Source, int]:
        """Return the part that holds an image, and its index there."""
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.parts[part], row - int(self._starts[part])

    def of_part(self, row: Any, read: Callable[[Source, Any], Any]) -> Any:
        """Return `read(part, index)` of an image."""
        import tensorflow as tf

        starts = host_tensor(self._starts[:-1])
        part = tf.reduce_sum(tf.cast(row >= starts, tf.int32)) - 1
        offset = row - tf.gather(starts, part)
        return tf.switch_case(part, [partial(read, source, offset) for source in self.parts])


class _JoinedPixels(_Joined, PixelStore):
    reads_many = False

    @property
    def size(self) -> tuple[int, int]:
        return next(part.store.size for part in self.parts if isinstance(part.store, PixelStore))

    def kept(self, row: int) -> NDArray[np.uint8] | None:
        part, index = self.place(row)
        return part.store.kept(part.row(index)) if isinstance(part.store, PixelStore) else None

    def pixels(self, row: Any) -> Any:
        import tensorflow as tf

        image = self.of_part(row, lambda part, index: part.read(index)[0])
        return tf.ensure_shape(image, [None, None, 3])


class _JoinedFiles(_Joined, EncodedStore):
    def encoded_rows(self, rows: Any) -> Any:
        import tensorflow as tf

        def read(part: Source, index: Any) -> Any:
            return part.encoded_rows(index[None])[0][0]

        return tf.stack([self.of_part(row, read) for row in tf.unstack(rows)])

    def location(self, row: int) -> Location:
        part, index = self.place(row)
        return part.location(index)
