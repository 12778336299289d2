"""Images stored one after another in a few large files, each read by its byte range."""

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
from tl_dist.datasets.open_files import MACHINE_FAULTS, shared_handles
from tl_dist.datasets.store import EncodedStore, Location


@dataclass(frozen=True, eq=False)
class RecordStore(EncodedStore):
    """Read image k, called `names[k]`, from `sizes[k]` bytes at `offsets[k]` of `files[shards[k]]`.

    `files` are paths below `root`. `checks` uint32 [N] are the CRC-32C of the images, compared at each read: a changed
    image raises InvalidArgumentError when the graph runs.
    """

    root: Path
    files: Sequence[str]
    shards: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    checks: NDArray[np.uint32]
    names: Sequence[str]

    def fingerprint(self, source: Source) -> str:
        """Return a hex digest of sizes, checksums and the source's metadata, wherever the files lie."""
        digest = hashlib.sha256(json.dumps([list(source.class_names)]).encode())
        for column, kind in ((self.sizes, "<i8"), (self.checks, "<u4"), (source.labels, "<i4")):
            digest.update(column.astype(kind).tobytes())
        digest.update("\0".join(source.ids).encode("utf-8", "surrogateescape"))
        digest.update(source.annotations.digest.encode())
        return digest.hexdigest()

    def location(self, row: int) -> Location:
        """Locate an image in its file."""
        path = self.root / self.files[self.shards[row]]
        return Location(path, int(self.offsets[row]), int(self.sizes[row]), int(self.checks[row]))

    @cached_property
    def _range(self) -> Callable[[int], bytes]:
        """Return a reader of bytes by row; it raises ValueError for a damaged file, OSError if the machine fails."""
        handle = shared_handles()
        paths = [os.fspath(self.root / file) for file in self.files]
        shards, offsets, sizes, checks = (
            column.tolist() for column in (self.shards, self.offsets, self.sizes, self.checks)
        )

        def read(k: int) -> bytes:
            shard = shards[k]
            try:
                file = handle(paths[shard])  # a reference, since another thread may evict it
                content = os.pread(file.fd, sizes[k], offsets[k])
            except OSError as error:
                if error.errno in MACHINE_FAULTS:
                    raise
                raise ValueError(f"{self.names[k]} cannot be read: {error.strerror}") from error
            if len(content) != sizes[k]:
                raise ValueError(f"{self.names[k]}: {self.files[shard]} ends before offset {offsets[k] + sizes[k]}")
            if google_crc32c.value(content) != checks[k]:
                raise ValueError(f"{self.names[k]}: the checksum at offset {offsets[k]} is wrong")
            return content

        return read

    def encoded_rows(self, rows: Any) -> Any:
        """Read images string [rows] in one call of Python; the number of rows may be dynamic."""
        import tensorflow as tf

        read = self._range

        def contents(numbers: NDArray[np.int64]) -> NDArray[np.object_]:
            return np.array([read(k) for k in numbers.tolist()], object)

        strings = tf.numpy_function(contents, [rows], tf.string, stateful=False)
        return tf.ensure_shape(strings, rows.shape)
