"""Splits and folds that are written down: a manifest of ids, with a digest, that any run can use.

{"schema": 1, "digest": ..., "seed": ..., "group": ..., "splits": {"train": [ids], ...}}   or "folds": [[ids], ...]
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits, Subset, host_tensor
from tl_dist.datasets.location import locator
from tl_dist.datasets.split import divide, hold_out
from tl_dist.durable import read_file, reason
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.registry import DATASETS, lookup

SCHEMA = 1
_MAX_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Concatenated:
    """Sources with the same classes, one after the other, as one `Source`."""

    parts: Sequence[Source]

    @property
    def num_examples(self) -> int:
        return sum(part.num_examples for part in self.parts)

    @property
    def num_classes(self) -> int:
        return self.parts[0].num_classes

    @property
    def class_names(self) -> Sequence[str]:
        return self.parts[0].class_names

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(" ".join(part.fingerprint for part in self.parts).encode()).hexdigest()

    @cached_property
    def ids(self) -> Sequence[str]:
        return [name for part in self.parts for name in part.ids]

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        return np.concatenate([part.labels for part in self.parts])

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(part.num_examples for part in self.parts)])

    @cached_property
    def location(self) -> Any:
        """Where an encoded example lies, by index; None unless every part knows."""
        locators = [locator(part) for part in self.parts]

        def locate(index: int) -> Any:
            part = int(np.searchsorted(self._starts, index, side="right")) - 1
            return locators[part](index - int(self._starts[part]))  # type: ignore[misc]

        return None if None in locators else locate

    def read(self, index: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        starts = host_tensor(self._starts[:-1])
        part = tf.reduce_sum(tf.cast(index >= starts, tf.int32)) - 1
        offset = index - tf.gather(starts, part)
        image, label = tf.switch_case(part, [lambda p=p: p.read(offset) for p in self.parts])
        return tf.ensure_shape(image, [None, None, 3]), label


def open_splits(data: DataConfig) -> tuple[Splits, str | None]:
    """The splits of a dataset, as its own rules or as `data.split` divides it; and the digest of that manifest."""
    opener = lookup(DATASETS, data.name)
    if data.split is None:
        return opener(data), None
    whole = data.model_copy(update={"test_fraction": 0.0, "validation_fraction": 0.0, "split": None})
    content = read_manifest(Path(data.split))
    return _apply(content, pooled(opener(whole)), data), content["digest"]


def pooled(splits: Splits) -> Source:
    """Every example of a dataset as one source, in the order of its splits."""
    sources = list(splits.values())
    return sources[0] if len(sources) == 1 else Concatenated(sources)


def division(
    pool: Source, *, test: float, validation: float, folds: int | None, group: str | None, seed: int
) -> dict[str, Any]:
    """A manifest that divides `pool`, each part with the same share of each class.

    `folds` parts of equal size, or the given fractions. With `group`, a regular expression that is sought in the ids,
    examples with the same match (its first group, where it has one) stay together; fractions are then kept only as
    far as groups allow. Refuses (65) what cannot be divided so.
    """
    groups = None if group is None else _groups(pool.ids, group)
    every = np.arange(pool.num_examples)
    content: dict[str, Any] = {"schema": SCHEMA, "seed": seed, "group": group}
    if folds is not None:
        content["folds"] = [_ids(pool, part) for part in _folds(pool, every, groups, folds, seed)]
    else:
        parts: dict[str, NDArray[np.int64]] = {}
        kept = every
        for name, share in (("test", test), ("validation", validation / (1 - test))):
            if share > 0 and groups is None:
                kept, parts[name] = hold_out(kept, pool.labels, share, seed=seed, key=f"--{name}")
            elif share > 0:
                parts[name] = _folds(pool, kept, groups, max(2, round(1 / share)), seed)[0]
                kept = np.setdiff1d(kept, parts[name])
        content["splits"] = {name: _ids(pool, part) for name, part in {"train": kept, **parts}.items()}
    return {"digest": _digest(content), **content}


def read_manifest(file: Path) -> dict[str, Any]:
    """A manifest whose digest is right; refuses (78) any other file."""
    try:
        content = json.loads(read_file(file, max_bytes=_MAX_BYTES))
        digest = content.pop("digest")
        whole = content["schema"] == SCHEMA and ("splits" in content) != ("folds" in content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(f"{file} is no manifest of splits ({reason(error)})") from error
    if not whole or digest != _digest(content):
        raise _refused(f"{file} was changed: its digest is not {str(digest)[:12]}")
    return {"digest": digest, **content}


def _apply(content: Mapping[str, Any], pool: Source, data: DataConfig) -> Splits:
    parts = content.get("splits") or _parts_of_fold(content["folds"], data)
    place = {name: k for k, name in enumerate(pool.ids)}
    named = [name for names in parts.values() for name in names]
    unknown = [name for name in named if name not in place]
    missing = place.keys() - set(named)
    if unknown or missing or len(named) != len(place):
        example = (unknown or sorted(missing) or ["an example twice"])[0]
        raise _refused(
            f"data.split {data.split} is of another data set: {len(unknown)} of its ids are not in this one, and "
            f"{len(missing)} of this one not in it (first {example})"
        )
    splits = {name: Subset(pool, np.array([place[i] for i in ids], np.int64)) for name, ids in parts.items()}
    held_out = {} if "splits" in content else divide(splits["train"], data, test=False)
    return {**splits, **held_out}


def _parts_of_fold(folds: Sequence[Sequence[str]], data: DataConfig) -> dict[str, Sequence[str]]:
    if data.fold is None or data.fold >= len(folds):
        raise Refusal(
            f"data.split {data.split} holds {len(folds)} folds, and data.fold is {data.fold}.",
            fix=f"set data.fold to a number from 0 to {len(folds) - 1}: the fold to test on.",
            code=ExitCode.USAGE,
        )
    train = [name for k, fold in enumerate(folds) if k != data.fold for name in fold]
    return {"train": train, "test": folds[data.fold]}


def _folds(
    pool: Source, indices: NDArray[np.int64], groups: NDArray[np.int64] | None, num: int, seed: int
) -> list[NDArray[np.int64]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    labels = pool.labels[indices]
    smallest = int(np.bincount(labels)[np.unique(labels)].min())
    num_groups = smallest if groups is None else len(np.unique(groups[indices]))
    if min(smallest, num_groups) < num:
        what = f"{num} folds need as many {'examples of each class' if groups is None else 'groups'}"
        raise _refused(f"{what}; there are {min(smallest, num_groups)}", code=ExitCode.DATA)
    made = kind(num, shuffle=True, random_state=seed).split(
        indices, labels, None if groups is None else groups[indices]
    )
    return [indices[np.sort(part)] for _, part in made]


def _groups(ids: Sequence[str], group: str) -> NDArray[np.int64]:
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise _refused(f"--group {group!r} is no regular expression: {error}", code=ExitCode.USAGE) from error
    found = [pattern.search(name) for name in ids]
    for name, match in zip(ids, found, strict=True):
        if match is None:
            raise _refused(f"--group {group!r} is not found in {name}", code=ExitCode.USAGE)
    names = [match[1] if pattern.groups else match[0] for match in found if match is not None]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _ids(pool: Source, indices: NDArray[np.int64]) -> list[str]:
    return [pool.ids[k] for k in indices]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refused(what: str, code: ExitCode = ExitCode.UNSAFE) -> Refusal:
    return Refusal(f"{what}.", fix="make a manifest with tl-dist data split.", code=code)
