"""Datasets: named splits, each a random-access mapping from index to example. `formats/` has one file a format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets.annotations import Annotations
from tl_dist.datasets.store import EncodedStore, Location, PixelStore, without_cached

ALIGNMENT = 64
"""bytes; TensorFlow uses memory in place only if it begins at a multiple of it"""


class Bad(NamedTuple):
    """Describe a record that is in no split because it cannot be used."""

    id: str  # of the record, or of the first one where the rest of a file is unreadable
    offset: int  # bytes
    reason: str


@dataclass(frozen=True, eq=False)
class Source:
    """Give random access to labelled images: a store of images, and the metadata known without decoding them.

    Example k is row k of the store or, in a subset, row `cut_from[1][k]`. Methods that take a tensor are traced inside
    tf.data.
    """

    store: PixelStore | EncodedStore
    labels: NDArray[np.int32]
    ids: Sequence[str]
    """human-readable name of each example (a file, or file plus offset); unique within the dataset"""
    class_names: Sequence[str]
    annotations: Annotations = field(default_factory=Annotations)
    bad: Sequence[Bad] = ()
    """records that the format reader left out"""
    table: Path | None = None
    """the CSV file that lists the images; it may have further columns"""
    cut_from: tuple[Source, NDArray[np.int64]] | None = None
    """for a subset: the whole source, and the indices of these examples in it"""

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.ids):
            raise ValueError(f"{len(self.labels)} labels for {len(self.ids)} ids")

    @property
    def num_examples(self) -> int:
        """Count the examples."""
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """Count the classes, or the targets or labels where examples have these."""
        return len(self.class_names)

    @property
    def truth(self) -> NDArray[Any]:
        """Return what a model is to answer: labels int32 [N], or targets float32 [N, targets]."""
        targets = self.annotations.targets
        return np.asarray(self.labels, np.int32) if targets is None else targets

    @cached_property
    def has_labels(self) -> bool:
        """Tell if the targets are labels: 0 and 1."""
        targets = self.annotations.targets
        return targets is not None and bool(np.isin(targets, (0, 1)).all())

    def in_words(self, answer: Any) -> str:
        """Return in words what is said of an example, an entry of `truth`: its class, its labels or its numbers."""
        if self.annotations.targets is None:
            return self.class_names[answer]
        return in_words(answer, self.class_names, labels=self.has_labels)

    @cached_property
    def fingerprint(self) -> str:
        """Return a hex digest that changes with the examples, their order and their labels."""
        if self.cut_from is None:
            return self.store.fingerprint(self)
        whole, indices = self.cut_from
        rows = hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
        return hashlib.sha256(f"{whole.fingerprint} {rows}".encode()).hexdigest()

    def subset(self, indices: NDArray[np.int64]) -> Source:
        """Select examples in the given order, with their ids, labels and annotations and a fingerprint of their own.

        A subset of a subset refers to the first source, so repeated division leaves no trace.
        Raises ValueError for an index out of range.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < self.num_examples:
            raise ValueError("an index lies outside the source")
        if self.cut_from is not None:
            whole, rows = self.cut_from
            return whole.subset(rows[indices])
        ids = self.ids
        return Source(
            self.store,
            self.labels[indices],
            [ids[k] for k in indices.tolist()],
            self.class_names,
            self.annotations.of_rows(indices),
            self.bad,
            self.table,
            cut_from=(self, indices),
        )

    def read(self, index: Any) -> tuple[Any, Any]:
        """Read the RGB image uint8 [height, width, 3] (any size) and the int32 label at a scalar int64 index.

        If `reads_many`, int64 [rows] gives uint8 [rows, height, width, 3] and int32 [rows]. Of examples with targets
        float32 [targets] stands for the label.
        """
        row = self._row(index)
        if isinstance(self.store, PixelStore):
            return self.store.pixels(row), self._label(index)
        import tensorflow as tf

        from tl_dist.datasets.decoding import decode_rgb

        return decode_rgb(self.store.encoded_rows(tf.reshape(row, [1]))[0]), self._label(index)

    @property
    def reads_many(self) -> bool:
        """Tell if `read` takes a vector of indices: the images are in memory and of one size."""
        return isinstance(self.store, PixelStore) and self.store.reads_many

    @property
    def is_encoded(self) -> bool:
        """Tell if the examples are encoded images: files or parts of files."""
        return isinstance(self.store, EncodedStore)

    def encoded_rows(self, indices: Any) -> tuple[Any, Any]:
        """Read image files string [rows] and labels int32 [rows] at int64 [rows]; only if `is_encoded`."""
        return self._files.encoded_rows(self._row(indices)), self._label(indices)

    def encoded_bytes(self, index: int) -> bytes:
        """Read the bytes of the image file without TensorFlow; raises OSError if that fails."""
        return self.location(index).read()

    def location(self, index: int) -> Location:
        """Locate the encoded image of an example."""
        return self._files.location(self.row(index))

    def row(self, index: int) -> int:
        """Return the row of the store that holds an example."""
        return index if self.cut_from is None else int(self.cut_from[1][index])

    @property
    def _files(self) -> EncodedStore:
        if not isinstance(self.store, EncodedStore):
            raise TypeError("images in memory are not encoded")
        return self.store

    @cached_property
    def _tensors(self) -> tuple[Any, Any]:
        """Hold the labels or targets, and the rows of a subset, as tensors."""
        rows = None if self.cut_from is None else host_tensor(self.cut_from[1])
        return host_tensor(self.truth), rows

    def _label(self, index: Any) -> Any:
        import tensorflow as tf

        return tf.gather(self._tensors[0], index)

    def _row(self, index: Any) -> Any:
        import tensorflow as tf

        rows = self._tensors[1]
        return index if rows is None else tf.gather(rows, index)

    __getstate__ = without_cached


Splits = Mapping[str, Source]
"""the sources of one dataset by name: always "train", and "validation" or "test" where they exist"""


def pool_of(source: Source) -> tuple[Source, NDArray[np.int64]]:
    """Return the source that a split was cut from, and the indices in it of the split's examples."""
    return source.cut_from or (source, np.arange(source.num_examples))


def in_words(answer: Any, names: Sequence[str], *, labels: bool) -> str:
    """Return in words which labels have a 1, or each number with its name."""
    pairs = zip(names, answer, strict=True)
    if labels:
        return ", ".join(name for name, value in pairs if value) or "no label"
    return ", ".join(f"{name} {value:.4g}" for name, value in pairs)


_FEW_VALUES, _BINS = 10, 10


def strata_of(source: Source) -> NDArray[np.int32]:
    """Number the stratum of each example for stratified splits: its class and, if it has one, its type; int32 [N].

    Numbers are in strata by the first target: its values where these are few, else tenths of the examples. Of labels
    there are columns instead, 0 and 1 [N, labels and types], for `split.iterative`.
    """
    targets, types = source.annotations.targets, source.annotations.types
    kinds = np.unique(types, return_inverse=True)[1].astype(np.int32) if types else None
    if targets is not None and source.has_labels:
        columns = [targets.astype(np.int32)]
        columns += [] if kinds is None else [np.eye(kinds.max() + 1, dtype=np.int32)[kinds]]
        return np.concatenate(columns, axis=1)
    strata, num = np.asarray(source.labels, np.int32), source.num_classes
    if targets is not None:
        bounds = np.unique(targets[:, 0])
        if len(bounds) > _FEW_VALUES:
            bounds = np.quantile(targets[:, 0], np.arange(1, _BINS) / _BINS)
        strata, num = np.searchsorted(bounds, targets[:, 0]).astype(np.int32), _BINS + 1
    return strata if kinds is None else kinds * np.int32(num) + strata


def host_tensor(values: Any) -> Any:
    """Return `values` as an eager tensor in host memory, even while tf.data traces a function.

    A traced function captures an eager tensor by reference. A constant made during tracing would be a copy
    inside the graph, which is serialised, is limited to 2 GiB, and is copied again by every graph rewrite.
    """
    import tensorflow as tf

    # Without the device, TensorFlow would put the values on a GPU and fetch them back for tf.data.
    with tf.init_scope(), tf.device("CPU:0"):
        return tf.constant(values)


def tensor_in_place(array: NDArray[Any]) -> Any:
    """Return an array or mapped file of any size as an eager tensor over the same memory, without a copy.

    Memory that does not begin at a multiple of ALIGNMENT, as a mapped .npy file does, is copied. The array must not
    change afterwards. A file may be mapped read-only: TensorFlow never writes into a tensor that has another owner.
    """
    import tensorflow as tf

    # The same memory as writable, since NumPy exports no read-only DLPack; the namespace keeps the array alive.
    interface = {**array.__array_interface__, "data": (array.ctypes.data, False)}
    writable = np.asarray(SimpleNamespace(__array_interface__=interface, array=array))
    return tf.experimental.dlpack.from_dlpack(writable.__dlpack__())


def manifest(splits: Splits) -> dict[str, Any]:
    """Describe which example is in which split, as JSON: class names, fingerprint and ids by split, and a digest."""
    content: dict[str, Any] = {
        "class_names": list(splits["train"].class_names),
        "splits": {
            name: {"fingerprint": source.fingerprint, "ids": list(source.ids)} for name, source in splits.items()
        },
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {"digest": digest, **content}
