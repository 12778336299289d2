"""Choose which pretrained network to start from, before any is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Score the network of a run."""

    scored: Mapping[str, Any]
    """what the scores depend on (images, data, weights, code), saved with them so that later commands can reuse them"""
