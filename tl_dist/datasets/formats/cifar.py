"""CIFAR-10 and CIFAR-100 in their published files: Python pickles or binary records.

Without `data.path` the publisher's archive of pickles is downloaded once and verified by the digest that Keras pins.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits
from tl_dist.datasets.arrays import array_source
from tl_dist.datasets.files import bytes_in, directory_of, size_of, unusable
from tl_dist.datasets.split import divide
from tl_dist.files import limits
from tl_dist.files.downloads import Archive, fetch_archive
from tl_dist.refusal import ExitCode, Refusal

CIFAR10_ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)
CIFAR100_ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
)
PUBLISHED = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
"""MD5 of the pickles, as in torchvision.datasets.cifar. Nobody can make another file with the MD5 of a given one."""

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
    """Hold the records of one file: images uint8 [n, 32, 32, 3]; labels int32 [n] by kind."""

    images: NDArray[np.uint8]
    labels: dict[str, NDArray[np.int32]]


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
    names = {each: _class_names(cifar, each, root, binary) for each in cifar.labels}

    def source(files: Iterable[str]) -> tuple[Source, NDArray[np.int32]]:
        """Return all records of files as one source, and the strata of its examples."""
        parts = [read(cifar, root / f"{file}.bin" if binary else root / file) for file in files]
        images, labels, strata = (
            np.concatenate(columns)
            for columns in zip(
                *((p.images, p.labels[kind], p.labels[cifar.strata]) for p in parts), strict=True
            )
        )
        # Without the suffix, so that both formats give an example the same id.
        ids = [
            f"{file}:{k}" for file, part in zip(files, parts, strict=True) for k in range(len(part.images))
        ]
        return array_source(images, labels, names[kind], ids), strata

    train, strata = source(cifar.train)
    return {**divide(train, data, strata=strata, test=False), "test": source([cifar.test])[0]}


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
    labels = {kind: records[:, column].astype(np.int32) for column, kind in enumerate(cifar.labels)}
    for kind, values in labels.items():
        outside = np.flatnonzero(values >= cifar.labels[kind].num_classes)
        if outside.size:
            k, last = outside[0], cifar.labels[kind].num_classes - 1
            raise _wrong(file, f"record {k} has the {kind} label {values[k]}, outside 0 to {last}")
    return _Part(_rgb(records[:, len(labels) :]), labels)


def _read_python(cifar: _Cifar, file: Path) -> _Part:
    """Read a pickled dictionary with the array "data" and one list for each kind of label."""
    content = _unpickled(file)
    labels = {kind: np.asarray(content[where.key], np.int32) for kind, where in cifar.labels.items()}
    return _Part(_rgb(content["data"]), labels)


def _rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images [n, 32, 32, 3] from pixels [n, 3072], channel by channel."""
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class _Unpickler(pickle.Unpickler):
    """Resolve only the names in an array's pickle: a second fence, behind the digest."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a known name; raises UnpicklingError for any other."""
        if (module, name) in {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
        }:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickled(file: Path) -> dict[str, Any]:
    """Load a published pickle; refuses (78) any other, which could run code or take all memory."""
    content = bytes_in(file, limits.CIFAR_FILE)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != PUBLISHED[file.name]:
        raise Refusal(
            f"{file} is a pickle other than the published one, and could do harm.",
            fix="obtain the file again from its publisher, or use the binary version of the dataset.",
            code=ExitCode.UNSAFE,
        )
    return dict(_Unpickler(io.BytesIO(content), encoding="latin1").load())


def _class_names(cifar: _Cifar, kind: str, root: Path, binary: bool) -> list[str]:
    where = cifar.labels[kind]
    if not binary:
        return list(_unpickled(root / cifar.names)[where.names_key])
    file = root / where.names_file
    size_of(file)
    text = bytes_in(file, limits.DATASET_METADATA).decode("latin1")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) != where.num_classes or len(set(names)) != len(names):
        raise _wrong(
            file, f"it holds {len(set(names))} different {kind} names instead of {where.num_classes}"
        )
    return names


def _wrong(file: Path, why: str) -> Refusal:
    return unusable(f"{file}: {why}", "obtain the file again from its publisher")
