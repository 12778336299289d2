"""Export the model of a run as a file for another runtime."""

from dataclasses import dataclass

from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Export a checkpoint in a format, and compare it with the run."""

    to: str
    numbers: str
    out: str  # a directory
    check: str = "test"  # the split on which it is compared with the run; "none" for no comparison
    min_agreement: float | None = None
    """None: 0.999 in the precision of the run, 0.99 in another, 0.98 in int8"""
