"""A network of ours with weights of torch."""

from collections.abc import Mapping
from typing import Any

from tl_dist.models.backbones import Backbone


def filled(record: Backbone, stored: Mapping[str, Any], side: int) -> Any:
    """The network for images of `side`, with all of its variables, and no other, from the arrays of a file of torch."""
    built, converted = record.build((side, side, 3)), record.of_torch(stored)  # type: ignore[misc]
    assert {v.path for v in built.weights} == converted.keys()
    for variable in built.weights:
        variable.assign(converted[variable.path])
    return built
