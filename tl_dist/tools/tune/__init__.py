"""Search for the best classifier on cached features."""

from __future__ import annotations

from dataclasses import dataclass

from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Try settings, by so many folds of the training split where there is no validation split."""

    folds: int
