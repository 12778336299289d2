"""Parse the first directory of a TIFF file (TIFF 6.0, Adobe): format of its pixels, and where they end."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tl_dist.datasets.gif import CutOff
from tl_dist.files import limits

Read = Callable[[int, int], bytes]
"""(offset, number) -> that many bytes, or fewer at the end of the file"""

ORDERS: Mapping[bytes, str] = {b"II*\0": "<", b"MM\0*": ">"}
"""byte order, as of struct, by the first bytes of a file"""

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _STRIPS, _ORIENTATION = 256, 257, 258, 262, 273, 274
_STRIP_ROWS, _STRIP_BYTES, _TILES, _TILE_BYTES, _EXTRA_SAMPLES = 278, 279, 324, 325, 338
_SIZES = {1: "B", 3: "H", 4: "I"}
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_CMYK, _ALPHA = 5, (1, 2)


class Page(NamedTuple):
    """Describe the first page of a file."""

    width: int
    height: int
    bits: int
    """bits a channel"""
    orientation: int
    has_alpha: bool
    is_cmyk: bool
    end: int
    """offset where its pixels end, as far as the first strips or tiles tell"""


def first_page(read: Read, length: int) -> Page:
    """Parse the first page; raises CutOff if the file of this length ends within its directory.

    Raises ValueError if there is no size, or if tags or pixels use one part of the file again and again: each use takes
    memory or time.
    """
    head = _exactly(read, 0, 8)
    order = ORDERS[head[:4]]
    (at,) = struct.unpack_from(f"{order}I", head, 4)
    (count,) = struct.unpack(f"{order}H", _exactly(read, at, 2))
    entries = _exactly(read, at + 2, 12 * count)
    tags: dict[int, tuple[int, int, int]] = {}
    tagged = furthest = 0
    for place in range(0, 12 * count, 12):
        tag, kind, number, offset = struct.unpack_from(f"{order}HHII", entries, place)
        tags.setdefault(tag, (kind, number, place + 8))
        if (size := number * _BYTES.get(kind, 0)) > 4:
            tagged, furthest = tagged + size, max(furthest, offset + size)
    if tagged > length:
        raise ValueError("TIFF whose tags hold more than the file") if furthest <= length else CutOff

    def values(tag: int, default: int | None = None) -> list[int]:
        if tag not in tags:
            if default is None:
                raise ValueError(f"TIFF without tag {tag} in its first directory")
            return [default]
        kind, number, place = tags[tag]
        if kind not in _SIZES or not number:
            raise ValueError(f"TIFF whose tag {tag} is no number")
        form = f"{order}{min(number, limits.TIFF_PIECES)}{_SIZES[kind]}"
        if struct.calcsize(_SIZES[kind]) * number <= 4:
            return list(struct.unpack_from(form, entries, place))
        (offset,) = struct.unpack_from(f"{order}I", entries, place)
        return list(struct.unpack(form, _exactly(read, offset, struct.calcsize(form))))

    height = values(_HEIGHT)[0]
    if _STRIPS in tags and tags[_STRIPS][1] * values(_STRIP_ROWS, height)[0] < height:
        raise ValueError("TIFF whose strips do not fill it")
    begins, lengths = (_STRIPS, _STRIP_BYTES) if _STRIPS in tags else (_TILES, _TILE_BYTES)
    if begins in tags and tags[begins][1] > limits.TIFF_PIECES:
        raise ValueError(f"TIFF has more than {limits.TIFF_PIECES:,} strips or tiles")
    pieces = list(zip(values(begins), values(lengths, 0), strict=False))
    if sum(size for _, size in pieces) > length + values(_WIDTH)[0] * height * 8:
        raise ValueError("TIFF whose strips or tiles hold more than the file")
    return Page(
        values(_WIDTH)[0],
        height,
        values(_BITS, 1)[0],
        values(_ORIENTATION, 1)[0],
        any(value in _ALPHA for value in values(_EXTRA_SAMPLES, 0)),
        values(_PHOTOMETRIC, 1)[0] == _CMYK,
        max(begin + length for begin, length in pieces),
    )


def _exactly(read: Read, at: int, num: int) -> bytes:
    data = read(at, num)
    if len(data) != num:
        raise CutOff
    return data
