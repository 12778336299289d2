"""Figures by group of a split that has been evaluated: its predictions with what the data set says of each example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tl_dist.datasets import Source
from tl_dist.datasets.grouping import named
from tl_dist.runs.directory import RunDir
from tl_dist.scores import predictions
from tl_dist.scores.groups import by_group


def record(run: RunDir, split: str, source: Source, by: Sequence[str]) -> dict[str, Any]:
    """For the record of an evaluation, whose predictions the run has just kept; empty where nothing was asked for."""
    names = named(source, by)
    if not names:
        return {}
    kept = predictions.load(predictions.file_of(run.path, split))
    said = kept.labels, kept.probabilities, kept.groups
    return {"groups": {kind: by_group(of, *said) for kind, of in names.items()}}
