"""Group examples, and record splits and folds in a manifest: ids and a digest, for any run to use.

{"schema": 1, "digest": ..., "seed": ..., "group": ..., "splits": {"train": [ids], ...}}   or "folds": [[ids], ...]
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import DataConfig, registry
from tl_dist.datasets import Source, Splits, directory_cache, pool_of, strata_of
from tl_dist.datasets.annotations import SoftLabels
from tl_dist.datasets.concatenated import concatenated
from tl_dist.datasets.csv_columns import opened, wrong
from tl_dist.datasets.files import unusable
from tl_dist.datasets.split import divide, folds_of, hold_out_each
from tl_dist.files import limits
from tl_dist.files.atomic import reason
from tl_dist.files.foreign import read_file
from tl_dist.refusal import ExitCode, Refusal

SCHEMA = 1


def open_splits(data: DataConfig) -> tuple[Splits, str | None]:
    """Open the splits of a dataset, divided by its own rules or by `data.split`; with the digest of that manifest."""
    if data.split is None:
        return _opened(data), None
    whole = data.model_copy(update={"test_fraction": 0.0, "validation_fraction": 0.0, "split": None})
    content = read_manifest(Path(data.split))
    return _apply(content, pooled(_opened(whole)), data), content["digest"]


def _opened(data: DataConfig) -> Splits:
    """Open a dataset; refuses (64) what a package's function returns if it is none."""
    with directory_cache.once():
        splits = registry.dataset(data.name).open(data)
    if not (isinstance(splits, Mapping) and isinstance(splits.get("train"), Source)):
        what = f"dataset '{data.name}' opened as a {type(splits).__name__} without a Source under 'train'."
        fix = "return a mapping from 'train', 'validation' and 'test' to tl_dist.datasets.Source."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    return _graded(splits, data.grades) if data.grades else splits


def _graded(splits: Splits, grades: Sequence[str]) -> Splits:
    """Return the same splits with the classes in the order of `grades`; those of one source stay parts of one."""
    pools = {id(pool): pool for pool, _ in map(pool_of, splits.values())}
    in_order = {key: _in_order(pool, grades) for key, pool in pools.items()}
    parts = {name: (source.cut_from, in_order[id(pool_of(source)[0])]) for name, source in splits.items()}
    return {name: whole if cut is None else whole.subset(cut[1]) for name, (cut, whole) in parts.items()}


def _in_order(source: Source, grades: Sequence[str]) -> Source:
    """Return a whole source with the classes in the order of `grades`; refuses (64) others than its classes."""
    names = list(source.class_names)
    if sorted(names) != sorted(grades):
        what = f"data.grades is {', '.join(grades)}, but the classes are {', '.join(names)}."
        fix = "write each class once, from the lowest to the highest."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    place = np.array([grades.index(name) for name in names], np.int32)
    soft = source.annotations.soft
    annotations = replace(source.annotations, soft=soft and SoftLabels(place[soft.others], soft.shares))
    return replace(source, labels=place[source.labels], class_names=tuple(grades), annotations=annotations)


def pooled(splits: Splits) -> Source:
    """Join all examples of a dataset into one source, in the order of its splits."""
    sources = list(splits.values())
    if len(sources) == 1:
        return sources[0]
    pools, indices = zip(*map(pool_of, sources), strict=True)
    if all(pool is pools[0] for pool in pools):
        return pools[0].subset(np.concatenate(indices))
    return concatenated(sources)


def division(
    pool: Source, *, test: float, validation: float, folds: int | None, group: str | None, seed: int
) -> dict[str, Any]:
    """Divide `pool` in a manifest, stratified by class, into `folds` parts of equal size or by the given fractions.

    `group` is a column of the table that lists the examples, or a regular expression to search the ids for. Examples
    with the same value or the same match (its first group, if it has one) stay together, and fractions are kept as
    nearly as groups allow. Default: the groups of the data set. Refuses (65) what cannot be divided.
    """
    names = group_names(pool, group)
    groups = None if names is None else np.unique(names, return_inverse=True)[1].astype(np.int64)
    content: dict[str, Any] = {"schema": SCHEMA, "seed": seed, "group": group}
    strata = pool.labels if pool.annotations.targets is None else strata_of(pool)
    if folds is not None:
        fold = folds_of(strata, folds, seed, groups)
        content["folds"] = [_ids(pool, np.flatnonzero(fold == k)) for k in range(folds)]
    else:
        num, fractions = pool.num_examples, {"test": test, "validation": validation}
        train, parts = hold_out_each(np.arange(num), strata, groups, fractions, total=num, seed=seed, key="--{}")
        content["splits"] = {name: _ids(pool, part) for name, part in {"train": train, **parts}.items()}
    return {"digest": _digest(content), **content}


def manifest_of_folds(pool: Source, fold: NDArray[np.int64]) -> dict[str, Any]:
    """Make a manifest of given folds, numbered from 0."""
    folds = [_ids(pool, np.flatnonzero(fold == k)) for k in range(int(fold.max()) + 1)]
    content = {"schema": SCHEMA, "seed": 0, "group": None, "folds": folds}
    return {"digest": _digest(content), **content}


def read_manifest(file: Path) -> dict[str, Any]:
    """Read a manifest and verify its digest; refuses (78) any other file."""
    try:
        content = json.loads(read_file(file, max_bytes=limits.SPLIT_MANIFEST))
        digest = content.pop("digest")
        is_intact = content["schema"] == SCHEMA and digest == _digest(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refused(f"{file} is no manifest of splits ({reason(error)})") from error
    if not is_intact:
        raise _refused(f"{file} was changed: its digest is not {str(digest)[:12]}")
    splits, folds, group = (content.get(key) for key in ("splits", "folds", "group"))
    parts = list(splits.values()) if isinstance(splits, dict) and "train" in splits else folds
    if not (
        (splits is None) != (folds is None)
        and isinstance(parts, list)
        and all(isinstance(part, list) and {*map(type, part)} <= {str} for part in parts)
        and isinstance(group, str | None)
    ):
        raise _refused(f"{file} holds neither splits with a train split nor folds, each a list of ids")
    return {"digest": digest, **content}


def _apply(content: Mapping[str, Any], pool: Source, data: DataConfig) -> Splits:
    parts = content.get("splits") or _parts_of_fold(content["folds"], data)
    row = {name: k for k, name in enumerate(pool.ids)}
    listed = [name for names in parts.values() for name in names]
    unknown = [name for name in listed if name not in row]
    missing = row.keys() - set(listed)
    if unknown or missing or len(listed) != len(row):
        example = (unknown or sorted(missing) or ["an example twice"])[0]
        raise _refused(
            f"data.split {data.split} is of another data set: {len(unknown)} of its ids are not in this one, and "
            f"{len(missing)} of this one not in it (first {example})"
        )
    splits = {name: pool.subset(np.array([row[i] for i in ids], np.int64)) for name, ids in parts.items()}
    if "splits" in content:
        return splits
    train = splits["train"]
    groups = group_names(train, content.get("group")) if data.validation_fraction > 0 else None
    return {**splits, **divide(train, data, test=False, groups=groups, total=len(row))}


def _parts_of_fold(folds: Sequence[Sequence[str]], data: DataConfig) -> dict[str, Sequence[str]]:
    if data.fold is None or data.fold >= len(folds):
        what = f"data.split {data.split} holds {len(folds)} folds, and data.fold is {data.fold}."
        fix = f"set data.fold to a number from 0 to {len(folds) - 1}: the fold to test on."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    train = [name for k, fold in enumerate(folds) if k != data.fold for name in fold]
    return {"train": train, "test": folds[data.fold]}


def groups_of(source: Source, data: DataConfig) -> Sequence[str]:
    """Return the group of each example of a split, by the rule of its manifest or the data set's own.

    Empty if nothing groups them.
    """
    group = None if data.split is None else read_manifest(Path(data.split)).get("group")
    return group_names(source, group) or ()


def group_names(pool: Source, group: str | None) -> Sequence[str] | None:
    """Return the group of each example by the `group` of `division`; None if nothing groups them."""
    if group is None:
        return pool.annotations.groups
    return _in_column(pool, group) or _matches(pool, group)


def groupings(source: Source, by: Sequence[str]) -> dict[str, Sequence[str]]:
    """Return the group of each example by each name in `by`: "type", "group", "any", a column, a regular expression.

    Refuses (65) what the data set does not have.
    """
    types, groups = source.annotations.types, source.annotations.groups
    existing = {"type": types or None, "group": groups}
    own = {name: column for name, column in existing.items() if column is not None}
    names: dict[str, Sequence[str]] = {}
    for name in by:
        if name == "any" and own:
            names |= own
        elif name in ("any", "type", "group") and name not in own:
            what = "neither types nor groups" if name == "any" else f"no {name} for its examples"
            raise unusable(
                f"the data set has {what}",
                "name a column of its table or a regular expression on its paths, as by --by '^([^/]*)/'",
            )
        else:
            names[name] = own.get(name) or group_names(source, name) or ()
    return names


def one_fold_each(source: Source, by: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return the fold of each example with one fold for each group, and the names of the groups.

    Refuses (65) a single group, and groups of whole classes, which training without that group never sees.
    """
    ((_, groups),) = groupings(source, [by]).items()
    names, fold = np.unique(np.asarray(groups, np.str_), return_inverse=True)
    pairs = set(zip(source.labels.tolist(), fold.tolist(), strict=True))
    why = ""
    if len(names) < 2:
        why = f"all {source.num_examples:,} examples are of one group, '{names[0]}': none can be left out"
    elif len(pairs) == len(np.unique(source.labels)):
        why = "each class is in one group alone: a model of the others has never seen it"
    if why:
        raise unusable(why, "group them by something else with --by, or use --folds")
    return fold.astype(np.int64), names.tolist()


def _in_column(pool: Source, name: str) -> Sequence[str] | None:
    """Return a column of the examples' table in their order; None without a table, or for a regular expression."""
    table, column = pool.table, name.strip().lower()
    if table is None:
        return None
    with opened(table) as reader:
        columns = list(reader.fieldnames or ())
        if column in columns:
            rows = {(row["path"] or "").strip(): (reader.line_num, row[column] or "") for row in reader}
            for line, value in map(rows.__getitem__, pool.ids):
                if not value.strip():
                    raise wrong(table, line, f"the {column} is empty")
            return [rows[path][1].strip() for path in pool.ids]
    if re.fullmatch(r"[\w .-]*\w", name):
        fix = f"name one of the columns {', '.join(columns)}, or a regular expression on the paths."
        raise Refusal(f"group {name!r} is no column of {table}.", fix=fix, code=ExitCode.USAGE)
    return None


def _matches(pool: Source, group: str) -> Sequence[str]:
    """Return the match of the regular expression in each id; refuses (64) an id without one."""
    try:
        pattern = re.compile(group)
    except re.error as error:
        fix = "such as '^([^/]*)/', for the first folder of a path."
        raise Refusal(f"group {group!r} is no regular expression: {error}.", fix=fix, code=ExitCode.USAGE) from error
    matches = [pattern.search(name) for name in pool.ids]
    for name, match in zip(pool.ids, matches, strict=True):
        if match is None:
            fix = "give a regular expression that each id matches; of a CSV file, also one of its columns."
            raise Refusal(f"group {group!r} is not found in {name}.", fix=fix, code=ExitCode.USAGE)
    return [match[1] if pattern.groups else match[0] for match in matches if match is not None]


def _ids(pool: Source, indices: NDArray[np.int64]) -> list[str]:
    return [pool.ids[k] for k in indices]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refused(what: str) -> Refusal:
    return Refusal(f"{what}.", fix="make a manifest with tl-dist data split.", code=ExitCode.UNSAFE)
