"""What training does to images, though it may not be what their owner wants."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets.headers import ALPHA, CMYK, DEEP, ORIENTATION

_WHAT = {
    "narrow": "images of 16 bits use the lower 14 or fewer: of 0 to 255 training sees 0 to 63 at most",
    ORIENTATION: "images are turned as their EXIF orientation says",
    ALPHA: "images may be transparent: they are put on white",
    DEEP: "images have more than 8 bits a channel: they are scaled to 8",
    CMYK: "images are in the colours of print: they become RGB without a colour profile",
}
_NARROW = 1 << 6


def is_narrow(pixels: NDArray[np.uint8]) -> bool:
    """Whether an image of 16 bits uses the lowest quarter alone, by its 8-bit RGB."""
    return int(pixels.max()) < _NARROW


def summed(
    found: Iterable[tuple[str, Collection[str]]], *, total: int, total_16_bits: int
) -> list[dict[str, Any]]:
    """One record for each kind of remark that occurs: how many of how many images, and the id of the first."""
    names: dict[str, list[str]] = {kind: [] for kind in _WHAT}
    for name, kinds in found:
        for kind in kinds:
            if kind in names:
                names[kind].append(name)
    totals = {"narrow": total_16_bits}
    return [
        {
            "kind": kind,
            "what": what,
            "count": len(names[kind]),
            "of": totals.get(kind, total),
            "example": names[kind][0],
        }
        for kind, what in _WHAT.items()
        if names[kind]
    ]
