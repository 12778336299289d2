"""CIFAR-10 and CIFAR-100 in their published files: Python pickles or binary records.

Without `data.path` the publisher's archive of pickles is downloaded once and verified by the digest that Keras pins.
"""

import hashlib
import io
import pickle
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class _Cifar:
    """Name the files of one dataset, and its kinds of labels."""

    archive: str
    python: str  # directory
    binary: str  # directory
    train: tuple[str, ...]
    test: str
    names: str  # pickle of the names of classes
    labels: dict[str, tuple[int, str, str, str]]
    """by kind, in the order of a binary record: number of classes, keys of labels and names in the pickles, and the
    binary version's file of names"""


_CIFAR10 = _Cifar(
    "cifar-10",
    python="cifar-10-batches-py",
    binary="cifar-10-batches-bin",
    train=tuple(f"data_batch_{k}" for k in range(1, 6)),
    test="test_batch",
    names="batches.meta",
    labels={"fine": (10, "labels", "label_names", "batches.meta.txt")},
)
_CIFAR100 = _Cifar(
    "cifar-100",
    python="cifar-100-python",
    binary="cifar-100-binary",
    train=("train",),
    test="test",
    names="meta",
    labels={
        "coarse": (20, "coarse_labels", "coarse_label_names", "coarse_label_names.txt"),
        "fine": (100, "fine_labels", "fine_label_names", "fine_label_names.txt"),
    },
)

_Part = tuple[NDArray[np.uint8], dict[str, NDArray[np.int32]]]
"""pixels uint8 [n, 3072], channel by channel, and labels int32 [n] by kind"""


def open_cifar10(data: DataConfig) -> Splits:
    """Open CIFAR-10 (Krizhevsky 2009) with its official test split, from `data.path`, a folder in it, or the cache."""
    return _open(_CIFAR10, CIFAR10_ARCHIVE, "fine", data)


def open_cifar100(data: DataConfig) -> Splits:
    """Open CIFAR-100 with `data.labels` (100 fine or 20 coarse classes), from the same places as CIFAR-10."""
    return _open(_CIFAR100, CIFAR100_ARCHIVE, data.labels, data)


def is_cifar10(path: Path, names: Set[str]) -> bool:
    """Tell by names if the path holds, or is, a directory of CIFAR-10."""
    return (
        not names.isdisjoint({_CIFAR10.binary, _CIFAR10.python, "data_batch_1.bin"})
        or {"data_batch_1", "batches.meta"} <= names
    )


def is_cifar100(path: Path, names: Set[str]) -> bool:
    """Tell by names if the path holds, or is, a directory of CIFAR-100."""
    return (
        not names.isdisjoint({_CIFAR100.binary, _CIFAR100.python})
        or {"train.bin", "fine_label_names.txt"} <= names
        or {"train", "meta", "test"} <= names
    )


def _open(cifar: _Cifar, archive: Archive, kind: str, data: DataConfig) -> Splits:
    root, binary = _find(cifar, archive, data)
    read, read_names = (_read_binary, _names_of_binary) if binary else (_read_python, _names_of_python)
    names = {each: read_names(cifar, each, root) for each in cifar.labels}[kind]

    def source(files: Sequence[str]) -> tuple[Source, NDArray[np.int32]]:
        """Return the records of files as one source, and their fine labels."""
        parts = [read(cifar, root / file) for file in files]
        # The ids are without a suffix, so that both formats give an example the same.
        ids = [f"{file}:{k}" for file, part in zip(files, parts, strict=True) for k in range(len(part[0]))]
        channels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
        labels, fine = (np.concatenate([columns[k] for _, columns in parts]) for k in (kind, "fine"))
        return array_source(np.ascontiguousarray(channels.transpose(0, 2, 3, 1)), labels, names, ids), fine

    # Each fine class lies in one coarse class: stratified by the fine ones, both kinds get the same split.
    train, fine = source(cifar.train)
    return {**divide(train, data, strata=fine, test=False), "test": source([cifar.test])[0]}


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


def _read_binary(cifar: _Cifar, stem: Path) -> _Part:
    """Read records of one byte for each kind of label, then the pixels."""
    file, record = stem.with_name(f"{stem.name}.bin"), len(cifar.labels) + 3 * 32 * 32
    size_of(file)
    content = bytes_in(file, limits.CIFAR_FILE)
    if len(content) % record:
        raise _wrong(file, f"its size is no multiple of {record} bytes: it is cut off or of another kind")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels = {kind: records[:, column].astype(np.int32) for column, kind in enumerate(cifar.labels)}
    for kind, values in labels.items():
        last = cifar.labels[kind][0] - 1
        for k in np.flatnonzero(values > last)[:1]:
            raise _wrong(file, f"record {k} has the {kind} label {values[k]}, outside 0 to {last}")
    return records[:, len(labels) :], labels


def _names_of_binary(cifar: _Cifar, kind: str, root: Path) -> list[str]:
    num_classes, _, _, name = cifar.labels[kind]
    size_of(root / name)
    text = bytes_in(root / name, limits.DATASET_METADATA).decode("latin1")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) != num_classes or len(set(names)) != len(names):
        raise _wrong(root / name, f"it holds {len(set(names))} different {kind} names instead of {num_classes}")
    return names


def _read_python(cifar: _Cifar, file: Path) -> _Part:
    content = _unpickled(file)
    labels = {kind: np.asarray(content[key], np.int32) for kind, (_, key, _, _) in cifar.labels.items()}
    return content["data"], labels


def _names_of_python(cifar: _Cifar, kind: str, root: Path) -> list[str]:
    return list(_unpickled(root / cifar.names)[cifar.labels[kind][2]])


_GLOBALS = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}


class _Unpickler(pickle.Unpickler):
    """Resolve only the names in an array's pickle: a second fence, behind the digest."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a known name; raises UnpicklingError for any other."""
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _unpickled(file: Path) -> dict[str, Any]:
    """Load a published pickle; refuses (78) any other, which could run code or take all memory."""
    content = bytes_in(file, limits.CIFAR_FILE)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != PUBLISHED[file.name]:
        what = f"{file} is a pickle other than the published one, and could do harm."
        fix = "obtain the file again from its publisher, or use the binary version of the dataset."
        raise Refusal(what, fix=fix, code=ExitCode.UNSAFE)
    return dict(_Unpickler(io.BytesIO(content), encoding="latin1").load())


def _wrong(file: Path, why: str) -> Refusal:
    return unusable(f"{file}: {why}", "obtain the file again from its publisher")
