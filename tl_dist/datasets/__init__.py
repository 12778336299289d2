"""What a dataset is: an index -> example mapping, in named splits. One file per format beside this one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""bytes; TensorFlow reads in place only what begins at a multiple of it"""


class SoftLabels(NamedTuple):
    """Labels that are a mixture of two: `shares` float32 [N] of the example's own, the rest of `others` int32 [N]."""

    others: NDArray[np.int32]
    shares: NDArray[np.float32]


class Source(Protocol):
    """Random access to labelled images.

    `read(index)` is traced inside tf.data: `index` is a scalar int64 tensor; it returns `(image, label)` with
    `image` uint8 [height, width, 3] (any size, RGB) and `label` a scalar int32.
    `fingerprint` is a hex digest that changes when the examples, their order or their labels do.
    `ids[i]` names example i for people (a file, or file plus offset); it is unique within the dataset.
    `labels` is the int32 vector of all labels, known without decoding an image.

    A source of images of one size in memory says `reads_many = True`: its `read` also takes int64 [rows], and gives
    uint8 [rows, height, width, 3] and int32 [rows] at once. A source of encoded images also has `encoded(index)`,
    giving the bytes of the image file, a scalar string, in place of its pixels; one that has a faster way to many of
    them has `encoded_rows(indices)`, giving string [rows] and int32 [rows].
    """

    @property
    def num_examples(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def labels(self) -> NDArray[np.int32]: ...

    def read(self, index: Any) -> tuple[Any, Any]: ...


class EncodedSource(Source, Protocol):
    """A `Source` whose examples are files or parts of files: PNG, JPEG, GIF, BMP or WebP, still encoded.

    `encoded(index)` is traced inside tf.data as `read` is; it returns `(bytes, label)`, a scalar string and a
    scalar int32. `read(index)` is `decode_rgb` of these bytes. `encoded_bytes(i)` gives the same bytes without
    TensorFlow; it raises OSError when they cannot be had.
    """

    def encoded(self, index: Any) -> tuple[Any, Any]: ...

    def encoded_bytes(self, index: int) -> bytes: ...


class Counted:
    """The sizes of a source that holds its `ids` and `class_names`."""

    ids: Sequence[str]
    class_names: Sequence[str]

    @property
    def num_examples(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


Splits = Mapping[str, Source]
"""The sources of one dataset by name: always "train", and "validation" or "test" where they exist."""


@dataclass(frozen=True, eq=False)
class Subset:
    """Some rows of a source, in the given order; fingerprint, ids and labels follow.

    A subset of a subset is a subset of the first source: how often a split was divided leaves no trace.
    ValueError if an index lies outside the source.
    """

    source: Source
    indices: NDArray[np.int64]

    def __post_init__(self) -> None:
        indices = np.asarray(self.indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < self.source.num_examples:
            raise ValueError("an index lies outside the source")
        if isinstance(self.source, Subset):
            indices = self.source.indices[indices]
            object.__setattr__(self, "source", self.source.source)
        object.__setattr__(self, "indices", indices)

    @property
    def num_examples(self) -> int:
        return len(self.indices)

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def class_names(self) -> Sequence[str]:
        return self.source.class_names

    @cached_property
    def fingerprint(self) -> str:
        rows = hashlib.sha256(self.indices.astype("<i8").tobytes()).hexdigest()
        return hashlib.sha256(f"{self.source.fingerprint} {rows}".encode()).hexdigest()

    @cached_property
    def ids(self) -> Sequence[str]:
        ids = self.source.ids
        return [ids[i] for i in self.indices]

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        return self.source.labels[self.indices]

    @cached_property
    def _rows(self) -> Any:
        return host_tensor(self.indices)

    def read(self, index: Any) -> tuple[Any, Any]:
        return self.source.read(self._gathered(index))

    def __getattr__(self, name: str) -> Any:
        # What only some sources have: a subset of arrays in memory has no encoded images either.
        if name in ("encoded", "encoded_rows"):
            encoded = getattr(self.source, name)
            return lambda index: encoded(self._gathered(index))
        if name == "encoded_bytes":
            encoded_bytes = self.source.encoded_bytes  # type: ignore[attr-defined]
            return lambda index: encoded_bytes(int(self.indices[index]))
        if name == "weights":
            weights = self.source.weights  # type: ignore[attr-defined]
            return None if weights is None else weights[self.indices]
        if name == "soft":
            soft = self.source.soft  # type: ignore[attr-defined]
            return None if soft is None else SoftLabels(*(values[self.indices] for values in soft))
        if name == "groups":
            groups = self.source.groups  # type: ignore[attr-defined]
            return None if groups is None else [groups[i] for i in self.indices]
        raise AttributeError(name)

    def _gathered(self, index: Any) -> Any:
        import tensorflow as tf

        return tf.gather(self._rows, index)

    @property
    def reads_many(self) -> bool:
        return reads_many(self.source)


def is_encoded(source: Source) -> TypeGuard[EncodedSource]:
    """Whether the examples are encoded images. A subset answers as its source."""
    return hasattr(source, "encoded_bytes")


def reads_many(source: Source) -> bool:
    """Whether the source reads many examples at once."""
    return getattr(source, "reads_many", False)


def pool_of(source: Source) -> tuple[Source, NDArray[np.int64]]:
    """The source that a split was cut from, and which of its examples the split holds."""
    if isinstance(source, Subset):
        return source.source, source.indices
    return source, np.arange(source.num_examples)


def types_of(source: Source) -> list[str]:
    """The name of each example's type, where the dataset has types (such as that of a solar module); else empty."""
    pool, indices = pool_of(source)
    types: Sequence[str] = getattr(pool, "types", ())
    return [types[i] for i in indices] if types else []


def strata_of(source: Source) -> NDArray[np.int32]:
    """A number for each example: its class and, where there is one, its type. What splits are stratified by."""
    labels, types = np.asarray(source.labels, np.int32), types_of(source)
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
