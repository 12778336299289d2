"""Evaluate a checkpoint: on a split of its own data set, on corrupted images of a split, or on another data set."""

from collections.abc import Sequence
from dataclasses import dataclass

from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Evaluate a split: of the data set `data` if given, and on corrupted images if `corruptions` are given."""

    split: str | None
    """None: the test split of `data`, or all of it if it has none"""
    by: Sequence[str] = ()
    """also give figures by group, as `datasets.division.groupings` takes it"""
    data: str | None = None
    corruptions: Sequence[str] = ()
    severities: Sequence[int] = ()
