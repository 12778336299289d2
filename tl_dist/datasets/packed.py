"""A data set in a few large files: images one after another, an index of offsets, and a digest of each file.

A packed set is a directory. Each shard is NAME.images (the encoded images and nothing between them), NAME.npz (offsets,
sizes, labels, CRC-32C of each image, ids, and the weights, groups, types and soft labels that the source has) and
NAME.json, which commits it; `manifest.json` commits the whole.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits
from tl_dist.datasets.annotations import NAMES, Annotations, unpacked_text
from tl_dist.datasets.files import directory_of, size_of
from tl_dist.datasets.records import RecordSource
from tl_dist.datasets.split import divide, refuse_second_validation
from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.refusal import ExitCode, Refusal

FORMAT = "tl_dist packed 1"
MANIFEST = "manifest.json"


def open_packed(data: DataConfig) -> Splits:
    """The set that `tl-dist data pack` wrote to `data.path`, with the splits of its source.

    A set of one split is a pool that the fractions divide. The indexes are compared with their digests here, each
    image with its checksum when it is read. Refuses (65) a directory that is not complete, and changed files.
    """
    root = directory_of(data, f"{MANIFEST} and the files that 'tl-dist data pack' writes beside it")
    manifest = _manifest(root)
    sources: dict[str, Source] = {
        name: _source(root, shards, manifest["class_names"]) for name, shards in manifest["splits"].items()
    }
    if list(sources) == ["train"]:
        return divide(sources["train"], data)
    if "validation" in sources:
        refuse_second_validation(data, f"{root} has a validation split")
    return {**sources, **divide(sources["train"], data, test=False)}


def _manifest(root: Path) -> Mapping[str, Any]:
    path = root / MANIFEST
    try:
        content = json.loads(read_file(path, max_bytes=limits.PACKED_INDEX))
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is {content.get('format')!r}, not {FORMAT!r}")
        if not {"class_names", "splits"} <= content.keys() or "train" not in content["splits"]:
            raise ValueError("it names no train split")
    except FileNotFoundError:
        raise _wrong(
            f"there is no {path}", "run 'tl-dist data pack' to its end, or correct data.path"
        ) from None
    except (OSError, ValueError, AttributeError) as error:
        raise _wrong(f"{path} is no manifest of a packed set: {error}") from error
    return dict(content)


def _source(root: Path, shards: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> RecordSource:
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in ("offsets", "sizes", "checks", "labels")}
    ids: list[str] = []
    more: list[dict[str, NDArray[Any]]] = []
    for shard in shards:
        images, index = root / f"{shard['name']}.images", root / f"{shard['name']}.npz"
        if (size := size_of(images)) != shard["images"]["size"]:
            raise _wrong(f"{images} has {size} bytes instead of {shard['images']['size']}")
        content = index.read_bytes() if size_of(index) else b""
        if hashlib.sha256(content).hexdigest() != shard["index"]["sha256"]:
            raise _wrong(f"{index} is not the file that {MANIFEST} names: its sha256 differs")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            for name, values in columns.items():
                values.append(arrays[name])
            ids += unpacked_text(arrays["ids"])
            more.append({name: arrays[name] for name in NAMES if name in arrays})
    numbers = [len(values) for values in columns["labels"]]
    return RecordSource(
        root=root,
        files=tuple(f"{shard['name']}.images" for shard in shards),
        shards=np.repeat(np.arange(len(shards), dtype=np.int32), numbers),
        offsets=np.concatenate(columns["offsets"]),
        sizes=np.concatenate(columns["sizes"]),
        checks=np.concatenate(columns["checks"]),
        labels=np.concatenate(columns["labels"]),
        ids=ids,
        class_names=tuple(class_names),
        check_images=True,
        annotations=Annotations.from_columns(more),
    )


def _wrong(what: str, fix: str = "pack the set again, or restore the file") -> Refusal:
    return Refusal(f"{what}.", fix=f"{fix}.", code=ExitCode.DATA)
