"""Compute figures by group of an evaluated split, from its saved predictions and the data set's groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tl_dist.datasets import Source
from tl_dist.datasets.grouping import named
from tl_dist.runs.directory import RunDir
from tl_dist.scores import predictions
from tl_dist.scores.evaluation import by_group


def record(run: RunDir, split: str, source: Source, by: Sequence[str]) -> dict[str, Any]:
    """Return the `groups` of an evaluation's record, whose predictions the run has just saved; empty without `by`."""
    groupings = named(source, by)
    if not groupings:
        return {}
    saved = predictions.load(predictions.file_of(run.path, split))
    columns = saved.labels, saved.probabilities, saved.groups
    return {"groups": {kind: by_group(names, *columns) for kind, names in groupings.items()}}
