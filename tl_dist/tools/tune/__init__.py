"""Search for the best classifier on cached features."""

from dataclasses import dataclass

from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Search the settings of a classifier."""

    folds: int
    """of the training split; used only if there is no validation split"""
