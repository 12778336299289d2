"""`tl-dist data split`: write the splits or folds of a data set to a manifest."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from tl_dist.datasets.curation.layout import opened
from tl_dist.datasets.division import division, group_names, pooled
from tl_dist.files import limits
from tl_dist.files.atomic import write_output
from tl_dist.files.foreign import read_file
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.terminal.console import Console, plain
from tl_dist.terminal.tables import column_groups, narrow_table

_MAX_CLASSES = 20


def split(
    path: Path,
    to: Path,
    *,
    test: float = 0.0,
    validation: float = 0.0,
    folds: int | None = None,
    group: str | None = None,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Divide all examples of a data set, whatever split they were in; returns counts by part and class, as JSON.

    The options are those of `division`. The manifest is written to `to`, over another file only with `force`. Refuses
    (64) fractions that exclude folds, or leave nothing.
    """
    what = None
    if folds is not None and (test or validation):
        what = "give either --folds or --test and --validation."
    elif folds is None and not (test or validation):
        what = "there is nothing to hold out."
    elif not 0 <= test + validation < 1:
        what = f"--test {test} and --validation {validation} leave nothing to train on."
    if what is not None:
        fix = "such as --test 0.2 --validation 0.1, or --folds 5."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    pool = pooled(opened(path)[1])
    manifest = division(pool, test=test, validation=validation, folds=folds, group=group, seed=seed)
    content = json.dumps(manifest).encode()
    if not force and os.path.lexists(to) and not _holds(to, content):
        what = f"{to} is there already and holds something else."
        fix = "name another file with --to, or replace it with --force."
        raise Refusal(what, fix=fix, code=ExitCode.CANNOT_CREATE)
    write_output(to, content, option="--to")
    parts = manifest.get("splits") or {f"fold {k}": ids for k, ids in enumerate(manifest["folds"])}
    label = dict(zip(pool.ids, pool.labels, strict=True))
    names = group_names(pool, group)
    groups = {} if names is None else dict(zip(pool.ids, names, strict=True))
    return {
        "file": str(to),
        "digest": manifest["digest"],
        "classes": list(pool.class_names),
        "parts": {
            name: np.bincount([label[i] for i in ids], minlength=pool.num_classes).tolist()
            for name, ids in parts.items()
        },
        "groups": {name: len({groups[i] for i in ids}) for name, ids in parts.items()} if groups else None,
    }


def _holds(file: Path, content: bytes) -> bool:
    try:
        return read_file(file, max_bytes=limits.SPLIT_MANIFEST) == content
    except OSError:
        return False


def show(facts: dict[str, Any], console: Console) -> None:
    """Print the size of each part and class, and the line for a config."""
    parts, classes, groups = facts["parts"], facts["classes"], facts["groups"]
    largest = max(sum(counts) for counts in parts.values())
    width = max(len(f"{largest:,}"), *(len(name) for name in parts))
    first_column = min(30, max(map(len, ("class", *classes))))
    for columns in column_groups(list(parts), width, console, beside=first_column):
        table = narrow_table("class", *columns, folds=("class",))
        table.add_row("all", *(f"{sum(parts[part]):,}" for part in columns), end_section=True)
        for k, name in enumerate(classes[:_MAX_CLASSES]):
            table.add_row(plain(name), *(f"{parts[part][k]:,}" for part in columns))
        if groups:
            table.add_section()
            table.add_row("groups", *(f"{groups[part]:,}" for part in columns))
        console.print(table)
    if len(classes) > _MAX_CLASSES:
        console.print(f"and {len(classes) - _MAX_CLASSES} more classes (--json lists all)")
    console.say(f"data.split={facts['file']}  (digest {facts['digest'][:12]})")
