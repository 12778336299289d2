"""TFRecord files of tf.train.Example: from the TensorFlow scripts, tensorflow_datasets, or the user."""

import logging
import re
from collections import ChainMap
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from tl_dist.config import DataConfig
from tl_dist.datasets import Bad, Source, Splits
from tl_dist.datasets.annotations import Annotations
from tl_dist.datasets.example_proto import KEYS, Keys
from tl_dist.datasets.files import directory_of, size_of, text_in, unusable
from tl_dist.datasets.records import RecordStore
from tl_dist.datasets.shard_index import ShardIndex, index_shards
from tl_dist.datasets.split import SPLIT_NAMES, completed
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
    a 0; `data.first_label` sets it. Class names come from a file labels.txt, or from the synsets in the records. With
    `data.target` these keys hold a number each instead of a label, and with `data.separator` the label is a list.
    Refuses (65) missing shards, and more bad records than data.max_bad.
    """
    root = directory_of(data, "TFRecord files, such as train-00000-of-01024")
    files = find_shards(root)
    if not files:
        raise unusable(f"{root} holds no TFRecord files", "name the directory that they are in")
    keys = KEYS
    if data.target or data.separator:
        keys = replace(KEYS, targets=tuple(name.encode() for name in data.target), lists=bool(data.separator))
    sources = shard_sources(root, files, data, class_names(root), keys=keys)
    return completed(sources, data, f"{root} has a validation split")


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
        raise unusable(f"{root}: {splits[''][0]} belongs to no split, but other files do", "move it elsewhere")
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
    indexes: dict[str, list[ShardIndex]] = {}
    for split, group in files.items():
        indexes[split] = [next(built) for _ in group]
        for name, index in zip(group, indexes[split], strict=True):
            number, wanted = len(index.labels), (numbers or {}).get(name)
            if wanted is not None and number != wanted and not index.lost:
                raise unusable(f"{root / name} holds {number} records instead of {wanted}", "restore the file")
        if split not in ("", "train") and all((index.labels == -1).all() for index in indexes[split]):
            _log.warning("%s: the records of %s have no labels: the split is left out", root, split)
            del indexes[split]
    first, names = _classes([index for group in indexes.values() for index in group], data.first_label, names)
    if keys.targets:
        first, names = 0, [name.decode() for name in keys.targets]
    return {
        split: _source(root, files[split], group, first, names, data.max_bad, by_filename)
        for split, group in indexes.items()
    }


def _classes(
    indexes: Sequence[ShardIndex], first: int | None, names: Sequence[str] | None
) -> tuple[int, Sequence[str]]:
    """Return the label in the records of class 0, and the names of the classes."""
    lists = [np.array([k for row in index.answers for k in row], np.int64) for index in indexes]
    labels = np.unique(np.concatenate([*(index.labels for index in indexes), *lists]))
    usual = labels[(labels >= 0) & (labels < limits.CLASSES)]
    most = int(usual.max(initial=0))
    if first is None:
        # tensorflow_datasets counts from 0; in the TensorFlow scripts 0 is a background class without images.
        from_0 = 0 in usual or (names and len(names) > most and names[0] != "background")
        first = 0 if from_0 else 1
    if names and first == 1 and names[0] == "background":
        names = names[1:]
    synsets = ChainMap(*(index.synsets for index in indexes))
    return first, names or [
        next(filter(None, synsets.get(k, ())), f"class {k - first}") for k in range(first, most + 1)
    ]


def _source(
    root: Path,
    files: Sequence[str],
    indexes: Sequence[ShardIndex],
    first: int,
    names: Sequence[str],
    max_bad: int | None,
    by_filename: bool,
) -> Source:
    offsets, sizes, labels, checks, starts = map(np.concatenate, zip(*(index[:5] for index in indexes), strict=True))
    shards = np.repeat(np.arange(len(files), dtype=np.int32), [len(index.labels) for index in indexes])
    last = first + len(names) - 1
    answers = [row for index in indexes for row in index.answers]
    is_class = (labels >= first) & (labels <= last)
    numbers = bool(answers) and isinstance(answers[0][0] if answers[0] else 0, float)
    if answers and not numbers:
        is_class = np.array([all(first <= k <= last for k in row) for row in answers])
    elif answers:
        is_class = np.isfinite(np.array(answers)).all(axis=1)
    bad = [entry for index in indexes for entry in index.bad]
    for shard, start, label in zip(shards[~is_class], starts[~is_class], labels[~is_class], strict=True):
        why = "a number is not finite" if numbers else f"label {label} is not in {first} to {last}"
        bad.append(Bad(f"{files[shard]}:{start}", int(start), why))
    good = np.flatnonzero(is_class)
    lost = sum(index.lost for index in indexes) + len(labels) - len(good)
    total = len(good) + lost
    most = max(100, total // 10_000) if max_bad is None else max_bad
    if lost > most or not len(good):
        shown = "; ".join(f"{name}: {why}" for name, _, why in bad[:5])
        what = f": about {lost} of {total} records are bad: {shown}" if lost else " holds no record"
        fix = "restore these files, or raise data.max_bad" if len(good) else "restore these files"
        raise unusable(f"{root}{what}", fix)
    if by_filename:
        filenames = list(chain.from_iterable(index.filenames for index in indexes))
        ids = [filenames[k] for k in good.tolist()]
    else:
        places = zip(shards[good].tolist(), starts[good].tolist(), strict=True)
        ids = [f"{files[shard]}:{start}" for shard, start in places]
    store = RecordStore(root, tuple(files), shards[good], offsets[good], sizes[good], checks[good], names=ids)
    if not answers:
        return Source(store, (labels[good] - first).astype(np.int32), ids, tuple(names), bad=tuple(bad))
    targets = np.zeros((len(good), len(names)), np.float32)
    for row, k in enumerate(good.tolist()):
        if numbers:
            targets[row] = answers[k]
        else:
            targets[row, np.array(answers[k], np.int64) - first] = 1
    zeros = np.zeros(len(good), np.int32)
    return Source(store, zeros, ids, tuple(names), Annotations(targets=targets), bad=tuple(bad))
