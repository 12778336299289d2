"""Where an encoded image lies: for checks that read bytes without decoding them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Location(NamedTuple):
    """`length` bytes of a file from `offset`; without a length, to its end."""

    path: Path
    offset: int = 0
    length: int | None = None
    crc32c: int | None = None
    """checksum of these bytes, where one is kept"""
