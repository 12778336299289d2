"""Data sets prepared on disk by tensorflow_datasets, read without it: JSON descriptions and TFRecord files.

`tfds.core.DatasetInfo.write_to_directory` writes dataset_info.json, features.json, and class names in
FEATURE.labels.txt. https://www.tensorflow.org/datasets/external_tfrecord
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from tl_dist.config import DataConfig
from tl_dist.datasets import Splits
from tl_dist.datasets.example_proto import KEYS, Keys
from tl_dist.datasets.files import directory_of, text_in, unusable
from tl_dist.datasets.formats.tfrecord import shard_sources
from tl_dist.datasets.split import SPLIT_NAMES, completed
from tl_dist.datasets.unlabelled import matching
from tl_dist.files import limits
from tl_dist.files.atomic import reason
from tl_dist.files.foreign import read_file
from tl_dist.refusal import Refusal

INFO = "dataset_info.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_FIELD = re.compile(r"\{(\w+)\}")
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
_READABLE_TYPES = ("", "uint8", "uint16")  # others are packed into the channels of a PNG, bit by bit

_log = logging.getLogger(__name__)


def open_tfds(data: DataConfig) -> Splits:
    """Open the prepared data set in `data.path`: the directory NAME/VERSION or NAME/CONFIG/VERSION, or one above it.

    Image and label are the supervised pair of the set, else its features `image` and `label`, else its only Image and
    its only ClassLabel. Splits train, validation and test are read; others, and splits without labels, are left out and
    named in the log. A set with only a train split is divided by the fractions. Refuses (65) a directory with several
    sets, file formats other than TFRecord, and shards that are missing or have the wrong number of records.
    """
    root = _prepared(directory_of(data, f"{INFO}: what tfds.load has prepared, such as NAME/1.0.0"))
    info = _json(root / INFO)
    kind = info.get("fileFormat") or "tfrecord"
    if kind != "tfrecord":
        raise unusable(
            f"{root} is written as {kind}, which cannot be read here",
            "prepare it again with tfds.builder(NAME, file_format='tfrecord')",
        )
    try:
        splits = {str(split["name"]): _shards(info, split) for split in info["splits"]}
        files = _files_by_split(root, splits)
        keys, names = _features(root, info)
    except _DAMAGE as error:
        raise _damaged(root / INFO, error) from error
    numbers = {name: n for shards in splits.values() for name, n in shards.items()}
    # Classes of tensorflow_datasets begin at 0, even if no example has that label.
    data = data.model_copy(update={"first_label": 0})
    sources = shard_sources(root, files, data, names, keys=keys, numbers=numbers)
    return completed(sources, data, f"{root} has a validation split")


def is_tfds(path: Path, names: Set[str]) -> bool:
    """Tell if a directory looks like a prepared set, or like the parent of its versions or configs."""
    versions = path.glob(f"[0-9]*.[0-9]*.[0-9]*/{INFO}")
    return any(file.is_file() for file in (path / INFO, path / ".config" / "metadata.json", *versions))


def _prepared(root: Path) -> Path:
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        files = matching(f"{escape(str(root))}/{depth}{INFO}")
        directories = sorted(Path(file).parent for file in files if "incomplete." not in file)
        if len(directories) > 1:
            names = ", ".join(str(path.relative_to(root)) for path in directories[:8])
            raise unusable(f"{root} holds {len(directories)} prepared sets: {names}", "set data.path to one of them")
        if directories:
            return directories[0]
    raise unusable(
        f"there is no {INFO} in {root} or below",
        "let tfds.load prepare the set, or use data.name: tfrecord for records without it",
    )


def _shards(info: Mapping[str, Any], split: Mapping[str, Any]) -> Mapping[str, int]:
    """Return the number of records of each file of a split, by its name."""
    lengths = [int(length) for length in split.get("shardLengths", ())]
    if len(lengths) > limits.SHARDS:
        raise ValueError(f"{len(lengths):,} shards, more than {limits.SHARDS:,}")
    digits = max(5, len(str(len(lengths))))

    def name(k: int) -> str:
        parts = {
            "DATASET": info["name"],
            "SPLIT": split["name"],
            "FILEFORMAT": "tfrecord",
            "SHARD_INDEX": f"{k:0{digits}}",
            "NUM_SHARDS": f"{len(lengths):0{digits}}",
            "SHARD_X_OF_Y": f"{k:0{digits}}-of-{len(lengths):0{digits}}",
        }
        # Not str.format, which would also look up attributes and pad to any width.
        template = str(split.get("filepathTemplate") or _TEMPLATE)
        filled = _FIELD.sub(lambda field: str(parts[field[1]]), template)
        if Path(filled).name != filled or not filled.isprintable() or "{" in filled:
            raise ValueError(f"{filled[:80]!r} is no name of a file")
        return filled

    return {name(k): length for k, length in enumerate(lengths) if length}


def _files_by_split(root: Path, splits: Mapping[str, Mapping[str, int]]) -> dict[str, list[str]]:
    """Return file names by the split's name in tl_dist; "" for a single pool."""
    known = {SPLIT_NAMES[name]: list(files) for name, files in splits.items() if name in SPLIT_NAMES and files}
    if "train" not in known:
        raise unusable(f"{root} has no split train, only {', '.join(splits) or 'none'}", "choose another set")
    if others := [name for name in splits if name not in SPLIT_NAMES]:
        _log.warning("%s: neither train, validation nor test, and left out: %s", root, ", ".join(others))
    return {"": known["train"]} if len(known) == 1 else known


class _Feature(NamedTuple):
    key: str
    """key in the records"""
    name: str
    """name in file names"""
    spec: Mapping[str, Any]


def _features(root: Path, info: Mapping[str, Any]) -> tuple[Keys, Sequence[str] | None]:
    """Return the keys of image and label in a record, and the class names."""
    path = root / "features.json"
    features: list[_Feature] = []
    if path.is_file():  # releases before 4.2 wrote none
        try:
            features = list(_flat(_json(path)))
        except (*_DAMAGE, RecursionError) as error:
            raise _damaged(path, error) from error
    if not features:
        return KEYS, _class_names(root, "label", {})
    image, label = _pair(root, features, info)
    kind = str(image.spec["image"].get("dtype", ""))
    if kind not in _READABLE_TYPES:
        raise unusable(f"{root}: its images hold numbers of type {kind}", "choose a set with 8-bit images")
    return Keys((image.key.encode(),), (label.key.encode(),)), _class_names(root, label.name, label.spec)


def _flat(spec: Mapping[str, Any], key: str = "", name: str = "") -> Iterator[_Feature]:
    """Yield the features with one value in each record, including nested dictionaries of features."""
    if "featuresDict" in spec:
        for child, below in spec["featuresDict"].get("features", {}).items():
            inside = child.replace("/", ".")
            yield from _flat(below, f"{key}/{child}" if key else child, f"{name}-{inside}" if key else inside)
    elif key:
        yield _Feature(key, name, spec)


def _pair(root: Path, features: Sequence[_Feature], info: Mapping[str, Any]) -> tuple[_Feature, _Feature]:
    images = {feature.key: feature for feature in features if "image" in feature.spec}
    labels = {feature.key: feature for feature in features if "classLabel" in feature.spec}
    items = ((info.get("supervisedKeys") or {}).get("tuple") or {}).get("items") or ()
    supervised = [item.get("featureKey") for item in items]
    for image, label in [supervised] * (len(supervised) == 2) + [["image", "label"]]:
        if image in images and label in labels:
            return images[image], labels[label]
    if len(images) == len(labels) == 1:
        return next(iter(images.values())), next(iter(labels.values()))
    kinds = f"{len(images)} images ({', '.join(images) or 'none'}) and {len(labels)} class labels"
    raise unusable(
        f"{root}: its records hold {kinds} ({', '.join(labels) or 'none'}), so it is no set of one labelled image each",
        "choose a set for classification, or write its images into class folders",
    )


def _class_names(root: Path, name: str, spec: Mapping[str, Any]) -> Sequence[str] | None:
    file = root / f"{name}.labels.txt"
    if file.is_file():
        return [line.strip() for line in text_in(file).split("\n") if line.strip()]
    number = spec.get("classLabel", {}).get("numClasses")
    if number is not None and not 0 < int(number) <= limits.CLASSES:
        raise ValueError(f"numClasses is {number}, not 1 to {limits.CLASSES:,}")
    return None if number is None else [f"class {k}" for k in range(int(number))]


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(read_file(path, max_bytes=limits.DATASET_METADATA, links=True)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> Refusal:
    return unusable(f"{path} cannot be read ({reason(error)})", "prepare the set again")
