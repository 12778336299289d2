"""Compute, list and remove cached feature sets."""

from dataclasses import dataclass

from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Compute the features that training the config would read."""
