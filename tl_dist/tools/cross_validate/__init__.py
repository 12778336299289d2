"""Out-of-fold predictions: every example is predicted by models that have not seen it."""

from dataclasses import dataclass

from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Cross-validate classifiers on cached features."""

    folds: int
    seeds: int
    by: str | None = None
    """kind of group, as in `datasets.division.groupings`: each group is a fold; `folds` and `seeds` are not used"""
