"""What a dataset is: an index -> example mapping, in named splits. One file per format in formats/."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets.annotations import Annotations
from tl_dist.datasets.byte_range import Location
from tl_dist.datasets.decoding import VERSION, decode_rgb
from tl_dist.datasets.store import EncodedStore, PixelStore, without_cached

ALIGNMENT = 64
"""bytes; TensorFlow reads in place only what begins at a multiple of it"""


class Bad(NamedTuple):
    """A record that cannot be used: it is in no split."""

    id: str  # of the record, or of the place from which on a file cannot be read
    offset: int  # bytes
    reason: str


@dataclass(frozen=True, eq=False)
class Source:
    """Random access to labelled images: the store that keeps them, and what is known of each without decoding it.

    Example k is row k of the store; of a part (see `subset`), row `cut_from[1][k]`. Methods that take a tensor are
    traced inside tf.data.
    """

    store: PixelStore | EncodedStore
    labels: NDArray[np.int32]
    ids: Sequence[str]
    """what people call each example (a file, or file plus offset); unique within the dataset"""
    class_names: Sequence[str]
    annotations: Annotations = field(default_factory=Annotations)
    bad: Sequence[Bad] = ()
    """records that the format left out"""
    table: Path | None = None
    """the CSV file that lists the images, and perhaps more about them"""
    decoding: int | None = None
    """by which version of its rule `decode_rgb` decodes its images, as `decoded_by` sets it; None: by the newest"""
    cut_from: tuple[Source, NDArray[np.int64]] | None = None
    """of a part: the whole source, and which of its examples these are"""

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.ids):
            raise ValueError(f"{len(self.labels)} labels for {len(self.ids)} ids")

    @property
    def num_examples(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def fingerprint(self) -> str:
        """A hex digest that changes when the examples, their order or their labels do.

        Where `decoded_by` has said so, also when the rule does by which they are decoded.
        """
        if self.cut_from is None:
            files = self.store.fingerprint(self)
            if not self.is_encoded or self.decoding in (None, 1):
                return files
            return hashlib.sha256(f"{files} decoding {self.decoding}".encode()).hexdigest()
        whole, indices = self.cut_from
        rows = hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
        return hashlib.sha256(f"{whole.fingerprint} {rows}".encode()).hexdigest()

    def subset(self, indices: NDArray[np.int64]) -> Source:
        """Some examples, in the given order; fingerprint, ids, labels and annotations follow.

        A part of a part is a part of the first source: how often a split was divided leaves no trace.
        ValueError if an index lies outside.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < self.num_examples:
            raise ValueError("an index lies outside the source")
        if self.cut_from is not None:
            whole, mine = self.cut_from
            return whole.subset(mine[indices])
        ids = self.ids
        return Source(
            self.store,
            self.labels[indices],
            [ids[k] for k in indices.tolist()],
            self.class_names,
            self.annotations.of_rows(indices),
            self.bad,
            self.table,
            self.decoding,
            cut_from=(self, indices),
        )

    def read(self, index: Any) -> tuple[Any, Any]:
        """Image uint8 [height, width, 3] (any size, RGB) and label, a scalar int32, at a scalar int64.

        With `reads_many` also of int64 [rows]: uint8 [rows, height, width, 3] and int32 [rows] at once.
        """
        row = self._row(index)
        if isinstance(self.store, PixelStore):
            return self.store.pixels(row), self._label(index)
        return decode_rgb(self.store.encoded(row), self.decoding or VERSION), self._label(index)

    @property
    def reads_many(self) -> bool:
        """Whether `read` takes many indices at once: images of one size in memory."""
        return isinstance(self.store, PixelStore) and self.store.reads_many

    @property
    def is_encoded(self) -> bool:
        """Whether the examples are encoded images: files or parts of files."""
        return isinstance(self.store, EncodedStore)

    def encoded(self, index: Any) -> tuple[Any, Any]:
        """The bytes of the image file, a scalar string, and the label; of `is_encoded` alone."""
        return self._files.encoded(self._row(index)), self._label(index)

    def encoded_rows(self, indices: Any) -> tuple[Any, Any]:
        """The same for int64 [rows]: string [rows], int32 [rows]."""
        return self._files.encoded_rows(self._row(indices)), self._label(indices)

    def encoded_bytes(self, index: int) -> bytes:
        """The same bytes without TensorFlow; OSError when they cannot be had."""
        return self._files.encoded_bytes(self.row(index))

    def location(self, index: int) -> Location:
        """Where the encoded image of an example lies."""
        return self._files.location(self.row(index))

    def row(self, index: int) -> int:
        """The row of the store that holds an example."""
        return index if self.cut_from is None else int(self.cut_from[1][index])

    @property
    def _files(self) -> EncodedStore:
        if not isinstance(self.store, EncodedStore):
            raise TypeError("images in memory are not encoded")
        return self.store

    @cached_property
    def _tensors(self) -> tuple[Any, Any]:
        """Labels, and the rows of a part."""
        rows = None if self.cut_from is None else host_tensor(self.cut_from[1])
        return host_tensor(np.asarray(self.labels, np.int32)), rows

    def _label(self, index: Any) -> Any:
        import tensorflow as tf

        return tf.gather(self._tensors[0], index)

    def _row(self, index: Any) -> Any:
        import tensorflow as tf

        rows = self._tensors[1]
        return index if rows is None else tf.gather(rows, index)

    __getstate__ = without_cached


Splits = Mapping[str, Source]
"""The sources of one dataset by name: always "train", and "validation" or "test" where they exist."""


def pool_of(source: Source) -> tuple[Source, NDArray[np.int64]]:
    """The source that a split was cut from, and which of its examples the split holds."""
    return source.cut_from or (source, np.arange(source.num_examples))


def decoded_by(splits: Splits, decoding: int, unusual: Collection[str]) -> Splits:
    """The splits, decoded by a version of the rule; those named `unusual` have images that show the difference.

    All others are decoded by the first version, to the same pixels, and keep their fingerprints. Splits that were cut
    from one source stay so, and are alike.
    """
    pools: dict[int, Source] = {}
    for name in sorted(splits, key=lambda name: name not in unusual):
        pool, _ = pool_of(splits[name])
        pools.setdefault(id(pool), replace(pool, decoding=decoding if name in unusual else 1))

    def of(source: Source) -> Source:
        made = pools[id(pool_of(source)[0])]
        return made if source.cut_from is None else made.subset(source.cut_from[1])

    return {name: of(source) for name, source in splits.items()}


def strata_of(source: Source) -> NDArray[np.int32]:
    """A number for each example: its class and, where there is one, its type. What splits are stratified by."""
    labels, types = np.asarray(source.labels, np.int32), source.annotations.types
    if not types:
        return labels
    numbers = np.unique(types, return_inverse=True)[1].astype(np.int32)
    return numbers * np.int32(source.num_classes) + labels


def host_tensor(values: Any) -> Any:
    """`values` as an eager tensor in host memory, also when called while tf.data traces a function.

    A traced function captures an eager tensor by reference. A constant made during tracing would be a copy
    inside the graph, which is serialised, is limited to 2 GiB, and is copied again by every graph rewrite.
    """
    import tensorflow as tf

    # Without the device, TensorFlow would put the values on a GPU and fetch them back for tf.data.
    with tf.init_scope(), tf.device("CPU:0"):
        return tf.constant(values)


class _Lent:
    """The memory of an array, said to be writable, since NumPy hands on no other. Keeps the array alive."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def tensor_in_place(array: NDArray[Any]) -> Any:
    """An array or a mapped file as an eager tensor over the same memory: of any size, no byte of it copied.

    That is, where it begins at a multiple of ALIGNMENT, as a mapped .npy file does; anything else is copied. The array
    must not change any more. A file may be mapped for reading alone: TensorFlow writes into no tensor that somebody
    else holds.
    """
    import tensorflow as tf

    return tf.experimental.dlpack.from_dlpack(np.asarray(_Lent(array)).__dlpack__())


def manifest(splits: Splits) -> dict[str, Any]:
    """Which example is in which split, as JSON: class names, fingerprint and ids by split, and a digest."""
    content: dict[str, Any] = {
        "class_names": list(splits["train"].class_names),
        "splits": {
            name: {"fingerprint": source.fingerprint, "ids": list(source.ids)}
            for name, source in splits.items()
        },
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {"digest": digest, **content}
