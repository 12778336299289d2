"""Where an encoded image lies: for checks that read bytes without decoding them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tl_dist.datasets import Source, Subset


class Location(NamedTuple):
    """`length` bytes of a file from `offset`; without a length, to its end."""

    path: Path
    offset: int = 0
    length: int | None = None
    crc32c: int | None = None
    """checksum of these bytes, where one is kept"""


def locator(source: Source) -> Callable[[int], Location] | None:
    """The function from an index to the place of its encoded image; None for a source that keeps no such images.

    A source whose examples are encoded images says so by a method `location(index) -> Location`.
    """
    if isinstance(source, Subset):
        inner, indices = locator(source.source), source.indices
        return None if inner is None else lambda index: inner(int(indices[index]))
    found: Any = getattr(source, "location", None)
    return found
