"""Every example predicted by models that have not seen it, for several divisions into folds."""

from __future__ import annotations

from dataclasses import dataclass

from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Out-of-fold predictions by classifiers on cached features. `by`: each group of this kind is a fold, once."""

    folds: int
    seeds: int
    by: str | None = None
