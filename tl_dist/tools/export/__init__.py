"""A run's model as a file for another runtime."""

from __future__ import annotations

from dataclasses import dataclass

from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """What to export, and what it must reach."""

    to: str
    numbers: str
    out: str
    """a directory"""
    check: str = "test"
    """the split on which it is compared with the run; "none": on none"""
    min_agreement: float | None = None
    """None: 0.999 where it computes as the run does, 0.99 where it does not, 0.98 in int8"""
