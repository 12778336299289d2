"""A manifest of splits or folds for the data set at a path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tl_dist.curation.layout import opened
from tl_dist.datasets.division import division, group_names, pooled
from tl_dist.durable import write_atomically


def split(path: Path, to: Path, *, group: str | None = None, **options: Any) -> dict[str, Any]:
    """Divide all examples of the data set, whatever split they were in; counts by part and class, as JSON.

    `options` are those of `division`. The manifest is put at `to`.
    """
    _, splits = opened(path)
    pool = pooled(splits)
    manifest = division(pool, group=group, **options)
    write_atomically(to, json.dumps(manifest).encode())
    parts = manifest.get("splits") or {f"fold {k}": ids for k, ids in enumerate(manifest["folds"])}
    label = dict(zip(pool.ids, pool.labels, strict=True))
    names = group_names(pool, group)
    of = {} if names is None else dict(zip(pool.ids, names, strict=True))
    return {
        "file": str(to),
        "digest": manifest["digest"],
        "classes": list(pool.class_names),
        "parts": {
            name: np.bincount([label[i] for i in ids], minlength=pool.num_classes).tolist()
            for name, ids in parts.items()
        },
        "groups": {name: len({of[i] for i in ids}) for name, ids in parts.items()} if of else None,
    }
