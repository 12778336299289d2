"""Write a manifest of splits or folds for the data set at a path."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tl_dist.datasets.curation.layout import opened
from tl_dist.datasets.division import division, group_names, pooled
from tl_dist.files import limits
from tl_dist.files.atomic import write_output
from tl_dist.files.foreign import read_file
from tl_dist.refusal import ExitCode, Refusal


def split(
    path: Path, to: Path, *, group: str | None = None, force: bool = False, **options: Any
) -> dict[str, Any]:
    """Divide all examples of a data set, whatever split they were in; returns counts by part and class, as JSON.

    `options` are passed to `division`. The manifest is written to `to`, over another file only with `force`.
    """
    _, splits = opened(path)
    pool = pooled(splits)
    manifest = division(pool, group=group, **options)
    content = json.dumps(manifest).encode()
    if not force:
        _refuse_other(to, content)
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


def _refuse_other(file: Path, content: bytes) -> None:
    """Refuse to overwrite other content: a division that runs may refer to, or a file of the user's."""
    if not os.path.lexists(file):
        return
    with suppress(OSError):
        if read_file(file, max_bytes=limits.SPLIT_MANIFEST) == content:
            return
    raise Refusal(
        f"{file} is there already and holds something else.",
        fix="name another file with --to, or replace it with --force.",
        code=ExitCode.CANNOT_CREATE,
    )
