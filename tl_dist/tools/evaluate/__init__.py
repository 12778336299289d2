"""The figures of a checkpoint: on a split of its own data set, on corrupted images of one, or on another data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Evaluate a split; with `data` one of that data set; with `corruptions` on images that are corrupted."""

    split: str | None
    """None: the test split of `data`, or all of a set without one"""
    by: Sequence[str] = ()
    """figures by group as well, as `datasets.grouping.named` takes it"""
    data: str | None = None
    corruptions: Sequence[str] = ()
    severities: Sequence[int] = ()
