"""Images that lie one after another in a few large files, each read by its byte range."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Source
from tl_dist.datasets.byte_range import Location
from tl_dist.datasets.open_files import MACHINE_FAULTS, shared_handles
from tl_dist.datasets.store import EncodedStore


@dataclass(frozen=True, eq=False)
class RecordStore(EncodedStore):
    """Byte ranges: image k, called `names[k]`, is `sizes[k]` bytes from `offsets[k]` of `files[shards[k]]`.

    `files` are paths below `root`. `checks` uint32 [N] are checksums from which, with sizes and what the source says of
    each image, the fingerprint is made; where the files lie is not in it. With `check_images` they are the CRC-32C of
    each image, compared at each read: an image that was changed is an InvalidArgumentError when the graph runs.
    """

    root: Path
    files: Sequence[str]
    shards: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    checks: NDArray[np.uint32]
    names: Sequence[str]
    check_images: bool = False

    def fingerprint(self, source: Source) -> str:
        digest = hashlib.sha256(json.dumps([list(source.class_names)]).encode())
        for column, kind in ((self.sizes, "<i8"), (self.checks, "<u4"), (source.labels, "<i4")):
            digest.update(column.astype(kind).tobytes())
        digest.update("\0".join(source.ids).encode("utf-8", "surrogateescape"))
        digest.update(source.annotations.digest.encode())
        return digest.hexdigest()

    def location(self, row: int) -> Location:
        path = self.root / self.files[self.shards[row]]
        checksum = int(self.checks[row]) if self.check_images else None
        return Location(path, int(self.offsets[row]), int(self.sizes[row]), checksum)

    @cached_property
    def _range(self) -> Callable[[int], bytes]:
        """The bytes of an image; ValueError when the file has not got them, OSError when the machine failed."""
        handles = shared_handles()
        paths = [os.fspath(self.root / file) for file in self.files]
        shards, offsets, sizes, checks = (
            column.tolist() for column in (self.shards, self.offsets, self.sizes, self.checks)
        )

        def read(k: int) -> bytes:
            shard = shards[k]
            try:
                content = handles.pread(paths[shard], sizes[k], offsets[k])
            except OSError as error:
                if error.errno in MACHINE_FAULTS:
                    raise
                raise ValueError(f"{self.names[k]} cannot be read: {error.strerror}") from error
            if len(content) != sizes[k]:
                raise ValueError(
                    f"{self.names[k]}: {self.files[shard]} ends before offset {offsets[k] + sizes[k]}"
                )
            if self.check_images and google_crc32c.value(content) != checks[k]:
                raise ValueError(f"{self.names[k]}: the checksum at offset {offsets[k]} is wrong")
            return content

        return read

    def encoded(self, row: Any) -> Any:
        import tensorflow as tf

        read = self._range
        content = tf.numpy_function(lambda k: read(int(k)), [row], tf.string, stateful=False)
        return tf.ensure_shape(content, [])

    def encoded_rows(self, rows: Any) -> Any:
        """In one call of Python, and of any number."""
        import tensorflow as tf

        read = self._range

        def contents(numbers: NDArray[np.int64]) -> NDArray[np.object_]:
            return np.array([read(k) for k in numbers.tolist()], object)

        found = tf.numpy_function(contents, [rows], tf.string, stateful=False)
        return tf.ensure_shape(found, rows.shape)

    def encoded_bytes(self, row: int) -> bytes:
        try:
            return self._range(row)
        except ValueError as error:
            raise OSError(str(error)) from error
