"""CIFAR-10 and CIFAR-100 in their published files: Python pickles or binary records.

Without `data.path` the publisher's archive of pickles is downloaded once and verified by the digest that Keras pins.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits
from tl_dist.datasets.array_pickle import load_array_pickle, text_of
from tl_dist.datasets.arrays import array_source
from tl_dist.datasets.files import bytes_in, directory_of, size_of, unusable
from tl_dist.datasets.split import divide
from tl_dist.files import limits
from tl_dist.files.downloads import Archive, fetch_archive
from tl_dist.refusal import Refusal

CIFAR10_ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)
CIFAR100_ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
)
_PIXELS = 3 * 32 * 32


class _Labels(NamedTuple):
    """Locate one kind of label in either format.

    A binary record begins with one byte for each kind, in the order of `_Cifar.labels`.
    """

    num_classes: int
    key: str  # pickle: the list of labels
    names_key: str  # pickle of names: the list of names
    names_file: str  # binary: one name a line


@dataclass(frozen=True)
class _Cifar:
    """Name the files and keys of one dataset."""

    archive: str
    python: str  # directory
    binary: str  # directory
    train: tuple[str, ...]
    test: str
    names: str  # pickle of names
    labels: dict[str, _Labels]
    strata: str  # kind of label by which a validation split is stratified


_CIFAR10 = _Cifar(
    archive="cifar-10",
    python="cifar-10-batches-py",
    binary="cifar-10-batches-bin",
    train=tuple(f"data_batch_{k}" for k in range(1, 6)),
    test="test_batch",
    names="batches.meta",
    labels={"fine": _Labels(10, "labels", "label_names", "batches.meta.txt")},
    strata="fine",
)
_CIFAR100 = _Cifar(
    archive="cifar-100",
    python="cifar-100-python",
    binary="cifar-100-binary",
    train=("train",),
    test="test",
    names="meta",
    labels={
        "coarse": _Labels(20, "coarse_labels", "coarse_label_names", "coarse_label_names.txt"),
        "fine": _Labels(100, "fine_labels", "fine_label_names", "fine_label_names.txt"),
    },
    # Each fine class lies in one coarse class, so both kinds are stratified and get the same split.
    strata="fine",
)


class _Part(NamedTuple):
    """Hold the records of one file: pixels uint8 [n, 3072], channel by channel; labels int64 [n] by kind."""

    file: Path
    pixels: NDArray[np.uint8]
    labels: dict[str, NDArray[np.int64]]


def open_cifar10(data: DataConfig) -> Splits:
    """Open CIFAR-10 (Krizhevsky 2009) with its official test split, from `data.path`, a folder in it, or the cache."""
    return _open(_CIFAR10, CIFAR10_ARCHIVE, "fine", data)


def open_cifar100(data: DataConfig) -> Splits:
    """Open CIFAR-100 with `data.labels` (100 fine or 20 coarse classes), from the same places as CIFAR-10."""
    return _open(_CIFAR100, CIFAR100_ARCHIVE, data.labels, data)


def is_cifar10(path: Path, names: Set[str]) -> bool:
    """Tell by names if the path holds, or is, a directory of CIFAR-10."""
    return (
        not names.isdisjoint({"cifar-10-batches-bin", "cifar-10-batches-py", "data_batch_1.bin"})
        or {"data_batch_1", "batches.meta"} <= names
    )


def is_cifar100(path: Path, names: Set[str]) -> bool:
    """Tell by names if the path holds, or is, a directory of CIFAR-100."""
    return (
        not names.isdisjoint({"cifar-100-binary", "cifar-100-python"})
        or {"train.bin", "fine_label_names.txt"} <= names
        or {"train", "meta", "test"} <= names
    )


def _open(cifar: _Cifar, archive: Archive, kind: str, data: DataConfig) -> Splits:
    root, binary = _find(cifar, archive, data)
    read = _read_binary if binary else _read_python
    names = {k: _class_names(cifar, k, root, binary) for k in cifar.labels}

    def parts(files: tuple[str, ...]) -> Iterator[_Part]:
        for file in files:
            part = read(cifar, root / f"{file}.bin" if binary else root / file)
            _check_labels(part, names)
            yield part

    train, strata = _source(cifar, parts(cifar.train), names[kind], kind)
    test, _ = _source(cifar, parts((cifar.test,)), names[kind], kind)
    return {**divide(train, data, strata=strata, test=False), "test": test}


def _find(cifar: _Cifar, archive: Archive, data: DataConfig) -> tuple[Path, bool]:
    """Return the directory of the files, and if they are binary, which is preferred since it needs no pickle."""
    address = f"https://www.cs.toronto.edu/~kriz/{cifar.archive}-binary.tar.gz"
    expected = f"the unpacked files of {address}"
    path = fetch_archive(archive) if data.path is None else directory_of(data, expected)
    files = (*cifar.train, cifar.test)
    for folder, suffix in ((cifar.binary, ".bin"), (cifar.python, "")):
        for root in (path / folder, path):
            if any((root / f"{file}{suffix}").is_file() for file in files):
                return root, bool(suffix)
    raise unusable(
        f"there is neither {path / cifar.binary / files[0]}.bin nor {path / cifar.python / files[0]}",
        f"unpack {address} and set data.path to the directory that it is in",
    )


def _read_binary(cifar: _Cifar, file: Path) -> _Part:
    """Read records of one byte for each kind of label, then the pixels."""
    record = len(cifar.labels) + _PIXELS
    size_of(file)
    content = bytes_in(file, limits.CIFAR_FILE)
    if len(content) % record:
        raise _wrong(file, f"its size is no multiple of {record} bytes: it is cut off or of another kind")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels = {kind: records[:, column].astype(np.int64) for column, kind in enumerate(cifar.labels)}
    return _Part(file, records[:, len(labels) :], labels)


def _read_python(cifar: _Cifar, file: Path) -> _Part:
    """Read a pickled dictionary with the array "data" and one list for each kind of label."""
    size_of(file)
    content = load_array_pickle(file)
    pixels = content.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise _wrong(file, f"it has no 'data' of type uint8 and {_PIXELS} columns")
    labels = {kind: _integers(content.get(where.key)) for kind, where in cifar.labels.items()}
    for kind, values in labels.items():
        if values is None or len(values) != len(pixels):
            raise _wrong(file, f"'{cifar.labels[kind].key}' is no list of {len(pixels)} integers")
    return _Part(file, pixels, labels)


def _integers(values: Any) -> Any:
    """Return int64 [n] from a list of int or an array of integers; None from anything else."""
    if isinstance(values, list) and all(type(value) is int and abs(value) < 2**31 for value in values):
        return np.asarray(values, np.int64)
    return values.astype(np.int64) if isinstance(values, np.ndarray) and values.ndim == 1 else None


def _class_names(cifar: _Cifar, kind: str, root: Path, binary: bool) -> list[str]:
    where = cifar.labels[kind]
    file = root / (where.names_file if binary else cifar.names)
    size_of(file)
    if binary:
        text = bytes_in(file, limits.DATASET_METADATA).decode("latin1")
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        listed = load_array_pickle(file).get(where.names_key)
        listed = listed if isinstance(listed, list) else []
        names = [text_of(name) for name in listed if isinstance(name, str | bytes)]
    if len(names) != where.num_classes or len(set(names)) != len(names):
        raise _wrong(
            file, f"it holds {len(set(names))} different {kind} names instead of {where.num_classes}"
        )
    return names


def _check_labels(part: _Part, names: dict[str, list[str]]) -> None:
    for kind, labels in part.labels.items():
        outside = np.flatnonzero((labels < 0) | (labels >= len(names[kind])))
        if outside.size:
            k, last = outside[0], len(names[kind]) - 1
            raise _wrong(part.file, f"record {k} has the {kind} label {labels[k]}, outside 0 to {last}")


def _source(
    cifar: _Cifar, parts: Iterator[_Part], class_names: list[str], kind: str
) -> tuple[Source, NDArray[np.int32]]:
    """Return all records as one source, and the strata of its examples."""
    images, labels, strata, ids = [], [], [], []
    for part in parts:
        channels = part.pixels.reshape(-1, 3, 32, 32)
        images.append(np.ascontiguousarray(channels.transpose(0, 2, 3, 1)))
        labels.append(part.labels[kind])
        strata.append(part.labels[cifar.strata])
        # Without the suffix, so that both formats give an example the same id.
        ids += [f"{part.file.stem}:{k}" for k in range(len(channels))]
    source = array_source(np.concatenate(images), np.concatenate(labels).astype(np.int32), class_names, ids)
    return source, np.concatenate(strata).astype(np.int32)


def _wrong(file: Path, why: str) -> Refusal:
    return unusable(f"{file}: {why}", "obtain the file again from its publisher")
