"""TFRecord files of tf.train.Example: from the TensorFlow scripts, tensorflow_datasets, or the user."""

import logging
import re
from collections.abc import Mapping, Sequence, Set
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from tl_dist.config import DataConfig
from tl_dist.datasets import Bad, Source, Splits
from tl_dist.datasets.example_proto import KEYS, Keys
from tl_dist.datasets.files import directory_of, size_of, text_in, unusable
from tl_dist.datasets.records import RecordStore
from tl_dist.datasets.shard_index import ShardIndex, index_shards
from tl_dist.datasets.split import SPLIT_NAMES, beside_official, divide
from tl_dist.files import limits
from tl_dist.files.atomic import reason
from tl_dist.files.packages import user_cache

_SHARD = re.compile(r"(?P<stem>.*)-(?P<k>\d{5,})-of-(?P<n>\d{5,})(?:\.tfrec(?:ords?)?)?")
_RECORDS = re.compile(r".*(\.tfrecords?$|\.tfrecord-\d+-of-\d+$|-\d{5}-of-\d{5}$)")
_SUFFIXES = (".tfrecord", ".tfrecords", ".tfrec")
_NAMES = ("labels.txt", "label.labels.txt", "synsets.txt")

_log = logging.getLogger(__name__)


def open_tfrecord(data: DataConfig) -> Splits:
    """Open the records of the TFRecord files in `data.path`: an encoded image and an integer label in each.

    Keys are `image/encoded` and `image/class/label` (the TensorFlow scripts), or `image` and `label`
    (tensorflow_datasets). Files named train, validation, val or test, as in `train-00000-of-01024`, are these splits;
    without such names all files are one pool, divided by the fractions. Labels count from 0, or from 1 if no record has
    a 0; `data.first_label` sets it. Class names come from a file labels.txt, or from the synsets in the records.
    Refuses (65) missing shards, and more bad records than data.max_bad.
    """
    root = directory_of(data, "TFRecord files, such as train-00000-of-01024")
    files = find_shards(root)
    if not files:
        raise unusable(f"{root} holds no TFRecord files", "name the directory that they are in")
    return open_shards(root, files, data, class_names(root))


def is_tfrecord(path: Path, names: Set[str]) -> bool:
    """Tell by the names of files if a directory holds TFRecord files."""
    return any(_RECORDS.fullmatch(name) for name in names)


def find_shards(root: Path) -> dict[str, list[str]]:
    """List the names of TFRecord files in a directory by split, "" for no split; refuses (65) an incomplete set."""
    splits: dict[str, list[str]] = {}
    counts: dict[tuple[str, int], set[int]] = {}
    for path in sorted(root.iterdir()):
        shard = _SHARD.fullmatch(path.name)
        if path.name.startswith(".") or not (shard or path.name.endswith(_SUFFIXES)) or not path.is_file():
            continue
        if shard:
            counts.setdefault((shard["stem"], int(shard["n"])), set()).add(int(shard["k"]))
        words = re.split(r"[-_.]", path.name.lower())
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")
        splits.setdefault(split, []).append(path.name)
    for (stem, number), numbers in counts.items():
        if missing := number - len({k for k in numbers if k < number}):  # a name may hold any number
            first = next(k for k in range(number) if k not in numbers)
            what = f"{missing} of {number} shards are missing, the first is {stem}-{first:05}-of-{number:05}"
            raise unusable(f"{root}: {what}", "restore them")
    if "" in splits and len(splits) > 1:
        raise unusable(
            f"{root}: {splits[''][0]} belongs to no split, but other files do", "move it elsewhere"
        )
    if splits and "train" not in splits and "" not in splits:
        raise unusable(f"{root} holds TFRecord files of {', '.join(splits)} alone", "add those of train")
    return splits


def class_names(root: Path) -> Sequence[str] | None:
    """Read the lines of the file of class names beside the records, if there is one; "0:name" becomes "name"."""
    for file in (*(root / name for name in _NAMES), *sorted(root.glob("*.labels.txt"))):
        if file.is_file():
            lines = text_in(file).splitlines()
            return [re.sub(rf"^{k}:", "", line.strip()) for k, line in enumerate(lines) if line.strip()]
    return None


def open_shards(
    root: Path,
    files: Mapping[str, Sequence[str]],
    data: DataConfig,
    names: Sequence[str] | None,
    **options: Any,
) -> Splits:
    """Open `shard_sources` and divide them: the split "" by the fractions."""
    sources = shard_sources(root, files, data, names, **options)
    if "" in sources:
        return divide(sources[""], data)
    return beside_official(sources, data, f"{root} has a validation split")


def shard_sources(
    root: Path,
    files: Mapping[str, Sequence[str]],
    data: DataConfig,
    names: Sequence[str] | None,
    *,
    keys: Keys = KEYS,
    numbers: Mapping[str, int] | None = None,
    by_filename: bool = False,
) -> dict[str, Source]:
    """Open TFRecord files as sources by split; `names` are the classes, None if only the records name them.

    A split other than train whose records all have the label -1 is unlabelled and left out. `numbers` is the required
    number of records by file, if known. The id of an example is its place or, with `by_filename`, its file name.
    """
    indexes: dict[str, list[ShardIndex]] = {}
    everything = [root / name for group in files.values() for name in group]
    for path in everything:
        size_of(path)
    try:
        built = iter(index_shards(everything, user_cache() / "tfrecord", keys))
    except OSError as error:
        raise unusable(
            f"the TFRecord files in {root} cannot be indexed: {reason(error)}",
            f"permit it; the index is kept in {user_cache() / 'tfrecord'}",
        ) from error
    for split, group in files.items():
        indexes[split] = [next(built) for _ in group]
        for name, index in zip(group, indexes[split], strict=True):
            number, wanted = len(index.labels), (numbers or {}).get(name)
            if wanted is not None and number != wanted and not index.lost:
                raise unusable(
                    f"{root / name} holds {number} records instead of {wanted}", "restore the file"
                )
    for split in [s for s, group in indexes.items() if s not in ("", "train") and not _labelled(group)]:
        _log.warning("%s: the records of %s have no labels: the split is left out", root, split)
        del indexes[split]
    classes = _Classes([index for group in indexes.values() for index in group], data.first_label, names)
    return {
        s: _source(root, files[s], group, classes, data.max_bad, by_filename) for s, group in indexes.items()
    }


def _labelled(indexes: Sequence[ShardIndex]) -> bool:
    return any((index.labels != -1).any() for index in indexes)


class _Classes:
    """Map the labels in the records to classes."""

    def __init__(self, indexes: Sequence[ShardIndex], first: int | None, names: Sequence[str] | None) -> None:
        labels = np.unique(np.concatenate([index.labels for index in indexes]))
        usual = labels[(labels >= 0) & (labels < limits.CLASSES)]
        if first is None:
            # tensorflow_datasets counts from 0; in the TensorFlow scripts 0 is a background class without images.
            first = (
                0
                if 0 in usual or (names and len(names) > usual.max(initial=0) and names[0] != "background")
                else 1
            )
        self.first = first
        if names and first == 1 and names[0] == "background":
            names = names[1:]
        synsets: dict[int, tuple[str, str]] = {}
        for index in indexes:
            synsets = {**index.synsets, **synsets}
        number = len(names) if names else int(usual.max(initial=0)) + 1 - first
        self.names = names or [_name(synsets.get(k + first), k) for k in range(number)]


def _name(synset_and_text: tuple[str, str] | None, k: int) -> str:
    return next((text for text in synset_and_text or () if text), f"class {k}")


def _source(
    root: Path,
    files: Sequence[str],
    indexes: Sequence[ShardIndex],
    classes: _Classes,
    max_bad: int | None,
    by_filename: bool,
) -> Source:
    bad: list[Bad] = [entry for index in indexes for entry in index.bad]
    lost = sum(index.lost for index in indexes)
    masks: list[np.ndarray] = []
    for name, index in zip(files, indexes, strict=True):
        good = (index.labels >= classes.first) & (index.labels < len(classes.names) + classes.first)
        masks.append(good)
        for start, label in zip(index.starts[~good].tolist(), index.labels[~good].tolist(), strict=True):
            last = len(classes.names) + classes.first - 1
            bad.append(Bad(f"{name}:{start}", start, f"label {label} is not in {classes.first} to {last}"))
            lost += 1

    def column(field: str) -> np.ndarray:
        return np.concatenate(
            [getattr(index, field)[good] for index, good in zip(indexes, masks, strict=True)]
        )

    total = sum(int(good.sum()) for good in masks)
    most = max(100, (total + lost) // 10_000) if max_bad is None else max_bad
    if lost > most or total == 0:
        shown = "; ".join(f"{name}: {why}" for name, _, why in bad[:5])
        raise unusable(
            f"{root}: about {lost} of {total + lost} records are bad: {shown}"
            if lost
            else f"{root} holds no record",
            "restore these files, or raise data.max_bad" if total else "restore these files",
        )
    if by_filename:
        pairs = zip(indexes, masks, strict=True)
        ids = [name for index, good in pairs for name in compress(index.filenames, good)]
    else:
        starts = [index.starts[good].tolist() for index, good in zip(indexes, masks, strict=True)]
        ids = [f"{name}:{start}" for name, rows in zip(files, starts, strict=True) for start in rows]
    store = RecordStore(
        root=root,
        files=tuple(files),
        shards=np.repeat(np.arange(len(files), dtype=np.int32), [int(good.sum()) for good in masks]),
        offsets=column("offsets"),
        sizes=column("sizes"),
        checks=column("checks"),
        names=ids,
    )
    labels = (column("labels") - classes.first).astype(np.int32)
    return Source(store, labels, ids, tuple(classes.names), bad=tuple(bad))
