"""Packed data sets: images one after another in a few large files, an index of offsets, a digest of each file.

A packed set is a directory. Each shard is NAME.images (the encoded images with nothing between them), NAME.npz
(offsets, sizes, labels, CRC-32C of each image, ids, and the weights, groups, types and soft labels that the source has)
and NAME.json, which commits the shard; `manifest.json` commits the set.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits
from tl_dist.datasets.annotations import NAMES, Annotations, unpacked_text
from tl_dist.datasets.files import directory_of, size_of, unusable
from tl_dist.datasets.records import RecordStore
from tl_dist.datasets.split import beside_official, divide
from tl_dist.files import limits
from tl_dist.files.atomic import reason
from tl_dist.files.foreign import read_file
from tl_dist.files.npz import read_npz
from tl_dist.refusal import Refusal

FORMAT = "tl_dist packed 1"
MANIFEST = "manifest.json"

_NEEDED = {"offsets": np.int64, "sizes": np.int64, "checks": np.uint32, "labels": np.int32}
_COLUMNS = _NEEDED | {"weights": np.float32, "soft_others": np.int32, "soft_shares": np.float32}
_TEXTS = {"ids", "groups", "types"}


def open_packed(data: DataConfig) -> Splits:
    """Open the set that `tl-dist data pack` wrote to `data.path`, with the splits of its source.

    A set with only a train split is divided by the fractions. Digests of indexes are verified here, the checksum of
    each image when it is read. Refuses (65) an incomplete directory, and changed files.
    """
    root = directory_of(data, f"{MANIFEST} and the files that 'tl-dist data pack' writes beside it")
    manifest = _manifest(root)
    sources: dict[str, Source] = {
        name: _source(root, shards, manifest["class_names"]) for name, shards in manifest["splits"].items()
    }
    if list(sources) == ["train"]:
        return divide(sources["train"], data)
    return beside_official(sources, data, f"{root} has a validation split")


def is_packed(path: Path, names: Set[str]) -> bool:
    """Tell by the names in a directory if it holds a packed set."""
    return MANIFEST in names


def _manifest(root: Path) -> Mapping[str, Any]:
    path = root / MANIFEST
    try:
        content = json.loads(read_file(path, max_bytes=limits.DATASET_METADATA, links=True))
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is {content.get('format')!r}, not {FORMAT!r}")
        names, splits = content["class_names"], content["splits"]
        if not isinstance(names, list) or {*map(type, names)} != {str} or len(names) > limits.CLASSES:
            raise ValueError("its class names are no texts, or too many")
        if "train" not in splits:
            raise ValueError("it names no train split")
        shards = [shard for shards in splits.values() for shard in shards]
        if any(Path(shard["name"]).name != shard["name"] for shard in shards) or not all(splits.values()):
            raise ValueError("its files have no names, or lie elsewhere")
    except FileNotFoundError:
        raise _wrong(
            f"there is no {path}", "run 'tl-dist data pack' to its end, or correct data.path"
        ) from None
    except (OSError, ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise _wrong(f"{path} is no manifest of a packed set: {reason(error)}") from error
    return dict(content)


def _source(root: Path, shards: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> Source:
    columns = [_columns(root, shard, len(class_names)) for shard in shards]

    def column(name: str) -> NDArray[Any]:
        return np.concatenate([part[name] for part in columns])

    numbers = [len(part["labels"]) for part in columns]
    ids = unpacked_text(column("ids"))
    store = RecordStore(
        root=root,
        files=tuple(f"{shard['name']}.images" for shard in shards),
        shards=np.repeat(np.arange(len(shards), dtype=np.int32), numbers),
        offsets=column("offsets"),
        sizes=column("sizes"),
        checks=column("checks"),
        names=ids,
        check_images=True,
    )
    annotations = Annotations.from_columns([{k: part[k] for k in NAMES if k in part} for part in columns])
    return Source(store, column("labels"), ids, tuple(class_names), annotations)


def _columns(root: Path, shard: Mapping[str, Any], num_classes: int) -> dict[str, NDArray[Any]]:
    """Read the index of one shard and check the type and length of each column."""
    images, index = root / f"{shard['name']}.images", root / f"{shard['name']}.npz"
    try:
        if (size := size_of(images)) != shard["images"]["size"]:
            raise _wrong(f"{images} has {size} bytes instead of {shard['images']['size']}")
        content = read_file(index, max_bytes=limits.PACKED_INDEX, links=True) if size_of(index) else b""
        if hashlib.sha256(content).hexdigest() != shard["index"]["sha256"]:
            raise _wrong(f"{index} is not the file that {MANIFEST} names: its sha256 differs")
        columns = read_npz(io.BytesIO(content))
        _check(columns, int(shard["num_examples"]), size, num_classes)
    except Refusal:
        raise
    except Exception as error:  # NumPy and zipfile raise nearly anything for a damaged file
        raise _wrong(f"{index} is no index of packed images: {reason(error)}") from error
    return columns


def _check(columns: Mapping[str, NDArray[Any]], number: int, size: int, num_classes: int) -> None:
    """Raise ValueError unless the columns are valid for `number` examples in a file of `size` bytes."""
    for name, kind in _COLUMNS.items():
        if (name in columns or name in _NEEDED) and (
            columns[name].dtype != kind or columns[name].shape != (number,)
        ):
            raise ValueError(f"{name} are not {number} of {np.dtype(kind)}")
    for name in (_TEXTS & columns.keys()) | {"ids"}:  # each text ends with a zero
        if columns[name].dtype != np.uint8 or np.count_nonzero(columns[name] == 0) != number:
            raise ValueError(f"{name} are not {number} texts")
    if ("soft_others" in columns) != ("soft_shares" in columns):
        raise ValueError("soft labels are there by half")
    offsets, sizes = columns["offsets"], columns["sizes"]
    if (offsets < 0).any() or (sizes < 0).any() or (sizes > size - offsets).any():
        raise ValueError("an image lies outside its file")
    for name in ("labels", "soft_others"):
        if name in columns and not ((columns[name] >= 0) & (columns[name] < num_classes)).all():
            raise ValueError(f"{name} are not below {num_classes}")
    for name in ("weights", "soft_shares"):
        if name in columns and not (np.isfinite(columns[name]) & (columns[name] >= 0)).all():
            raise ValueError(f"{name} are not finite numbers from 0")


def _wrong(what: str, fix: str = "pack the set again, or restore the file") -> Refusal:
    return unusable(what, fix)
