"""Packed data sets: TFRecord files of images, labels and names, and JSON beside them for all else.

Each shard is NAME.tfrecord, whose records anyone can read, and NAME.json, which commits it: its size, the ids of its
examples, and the weights, groups, types and soft labels that the source has. `manifest.json` commits the set: class
names, and the shards of each split with the digests of their NAME.json.
"""

import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits
from tl_dist.datasets.annotations import Annotations, texts
from tl_dist.datasets.files import directory_of, size_of, unusable
from tl_dist.datasets.formats.tfrecord import shard_sources
from tl_dist.datasets.split import completed
from tl_dist.files import limits
from tl_dist.files.atomic import reason
from tl_dist.files.foreign import read_file
from tl_dist.refusal import Refusal

FORMAT = "tl_dist packed 1"
MANIFEST = "manifest.json"


def open_packed(data: DataConfig) -> Splits:
    """Open the set that `tl-dist data pack` wrote to `data.path`, with the splits of its source.

    A set with only a train split is divided by the fractions. Records are verified when they are indexed, and images
    when they are read. Refuses (65) an incomplete directory, changed files, and more bad records than data.max_bad.
    """
    root = directory_of(data, f"{MANIFEST} and the files that 'tl-dist data pack' writes beside it")
    class_names, splits = _manifest(root)
    shards = {
        split: {f"{name}.tfrecord": _shard(root, name, digest, len(class_names)) for name, digest in parts.items()}
        for split, parts in splits.items()
    }
    sources = shard_sources(
        root,
        {split: list(parts) for split, parts in shards.items()},
        data.model_copy(update={"first_label": 0}),
        class_names,
        numbers={file: len(ids) for parts in shards.values() for file, (ids, _) in parts.items()},
        by_filename=True,
    )
    annotated = {split: _annotated(root, source, shards[split]) for split, source in sources.items()}
    if list(annotated) == ["train"]:
        annotated = {"": annotated["train"]}
    return completed(annotated, data, f"{root} has a validation split")


def is_packed(path: Path, names: Set[str]) -> bool:
    """Tell by the names in a directory if it holds a packed set."""
    return MANIFEST in names


def _manifest(root: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Read the class names, and by split the digests of the shards by name."""
    path = root / MANIFEST
    try:
        content = json.loads(read_file(path, max_bytes=limits.DATASET_METADATA, links=True))
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is {content.get('format')!r}, not {FORMAT!r}")
        class_names = content["class_names"]
        splits = {split: dict(shards) for split, shards in content["splits"].items()}
        if not 0 < len(texts(class_names)) <= limits.CLASSES:
            raise ValueError("its class names are too few or too many")
        if "train" not in splits:
            raise ValueError("it names no train split")
        if any(Path(name).name != name for shards in splits.values() for name in shards):
            raise ValueError("its files lie elsewhere")
        if not all(splits.values()):
            raise ValueError("a split has no files")
    except FileNotFoundError:
        fix = "run 'tl-dist data pack' to its end, or correct data.path"
        raise unusable(f"there is no {path}", fix) from None
    except (OSError, ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise _wrong(f"{path} is no manifest of a packed set: {reason(error)}") from error
    return class_names, splits


def _shard(root: Path, name: str, digest: str, num_classes: int) -> tuple[list[str], Annotations]:
    """Read ids and annotations of a shard, and check the size of its records."""
    path, records = root / f"{name}.json", root / f"{name}.tfrecord"
    try:
        content = read_file(path, max_bytes=limits.PACKED_INDEX, links=True)
        if hashlib.sha256(content).hexdigest() != digest:
            raise _wrong(f"{path} is not the file that {MANIFEST} names: its sha256 differs")
        facts: dict[str, Any] = json.loads(content)
        if (size := size_of(records)) != facts["size"]:
            raise _wrong(f"{records} has {size} bytes instead of {facts['size']}")
        ids = texts(facts["ids"])
        return ids, Annotations.from_json(facts, len(ids), num_classes)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise _wrong(f"{path} does not describe packed images: {reason(error)}") from error


def _annotated(root: Path, source: Source, shards: Mapping[str, tuple[list[str], Annotations]]) -> Source:
    """Give the examples, of which bad records may be missing, the annotations of their ids."""
    ids, annotations = zip(*shards.values(), strict=True)
    row = {name: k for k, name in enumerate(chain(*ids))}
    sizes = [len(names) for names in ids]
    if len(row) < sum(sizes) or len({*source.ids} & row.keys()) < source.num_examples:
        raise _wrong(f"{root}: the records of {', '.join(shards)} are not those that were packed")
    rows = np.array([row[name] for name in source.ids], np.int64)
    return replace(source, annotations=Annotations.joined(annotations, sizes).of_rows(rows))


def _wrong(what: str) -> Refusal:
    return unusable(what, "pack the set again, or restore the file")
