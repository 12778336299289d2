"""Images that lie one after another in a few large files, each read by its byte range."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Counted, SoftLabels, host_tensor
from tl_dist.datasets.annotations import Annotations
from tl_dist.datasets.files import decode_rgb
from tl_dist.datasets.handles import MACHINE_FAULTS, shared_handles
from tl_dist.datasets.location import Location


class Bad(NamedTuple):
    """A record that cannot be used: it is in no split."""

    id: str  # of the record, or of the place from which on a file cannot be read
    offset: int  # bytes
    reason: str


@dataclass(frozen=True, eq=False)
class RecordSource(Counted):
    """An `EncodedSource` of byte ranges: example k is `sizes[k]` bytes from `offsets[k]` of `files[shards[k]]`.

    `files` are paths below `root`. `checks` uint32 [N] are checksums from which, with ids, sizes and labels, the
    fingerprint is made; where the files lie is not in it. With `check_images` they are the CRC-32C of each image,
    which is compared at each read: an image that was changed is an InvalidArgumentError when the graph runs.
    `bad` are the records that were left out. `annotations` are what else is known of each example.
    """

    root: Path
    files: Sequence[str]
    shards: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    checks: NDArray[np.uint32]
    labels: NDArray[np.int32]
    ids: Sequence[str]
    class_names: Sequence[str]
    check_images: bool = False
    bad: Sequence[Bad] = field(default=())
    annotations: Annotations = field(default_factory=Annotations)

    @property
    def weights(self) -> NDArray[np.float32] | None:
        return self.annotations.weights

    @property
    def groups(self) -> Sequence[str] | None:
        return self.annotations.groups

    @property
    def types(self) -> Sequence[str]:
        return self.annotations.types

    @property
    def soft(self) -> SoftLabels | None:
        return self.annotations.soft

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([list(self.class_names)]).encode())
        for column, kind in ((self.sizes, "<i8"), (self.checks, "<u4"), (self.labels, "<i4")):
            digest.update(column.astype(kind).tobytes())
        digest.update("\0".join(self.ids).encode("utf-8", "surrogateescape"))
        digest.update(self.annotations.digest.encode())
        return digest.hexdigest()

    def location(self, index: int) -> Location:
        """Where the encoded image of an example lies."""
        path = self.root / self.files[self.shards[index]]
        checksum = int(self.checks[index]) if self.check_images else None
        return Location(path, int(self.offsets[index]), int(self.sizes[index]), checksum)

    @cached_property
    def _range(self) -> Callable[[int], bytes]:
        """The bytes of an example; ValueError when the file has not got them, OSError when the machine failed."""
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
                raise ValueError(f"{self.ids[k]} cannot be read: {error.strerror}") from error
            if len(content) != sizes[k]:
                raise ValueError(
                    f"{self.ids[k]}: {self.files[shard]} ends before offset {offsets[k] + sizes[k]}"
                )
            if self.check_images and google_crc32c.value(content) != checks[k]:
                raise ValueError(f"{self.ids[k]}: the checksum at offset {offsets[k]} is wrong")
            return content

        return read

    @cached_property
    def _label_tensor(self) -> Any:
        return host_tensor(self.labels)

    def encoded(self, index: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        read = self._range
        content = tf.numpy_function(lambda k: read(int(k)), [index], tf.string, stateful=False)
        return tf.ensure_shape(content, []), tf.gather(self._label_tensor, index)

    def encoded_rows(self, indices: Any) -> tuple[Any, Any]:
        """The same for int64 [rows], in one call of Python."""
        import tensorflow as tf

        read = self._range

        def rows(numbers: NDArray[np.int64]) -> NDArray[np.object_]:
            return np.array([read(k) for k in numbers.tolist()], object)

        contents = tf.numpy_function(rows, [indices], tf.string, stateful=False)
        return tf.ensure_shape(contents, indices.shape), tf.gather(self._label_tensor, indices)

    def encoded_bytes(self, index: int) -> bytes:
        try:
            return self._range(index)
        except ValueError as error:
            raise OSError(str(error)) from error

    def read(self, index: Any) -> tuple[Any, Any]:
        encoded, label = self.encoded(index)
        return decode_rgb(encoded), label
