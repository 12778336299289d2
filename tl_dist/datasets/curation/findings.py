"""Report what training does to images that their owner may not expect."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets.headers import ALPHA, CMYK, DEEP, ORIENTATION

_WHAT = {
    "narrow": "images of 16 bits use only the lower 14 or fewer: training sees at most 0 to 63 of 0 to 255",
    ORIENTATION: "images are turned by their EXIF orientation",
    ALPHA: "images may be transparent: they are composited on white",
    DEEP: "images have more than 8 bits a channel: they are scaled to 8",
    CMYK: "images are CMYK: they become RGB without a colour profile",
}
_NARROW = 1 << 6


def is_narrow(pixels: NDArray[np.uint8]) -> bool:
    """Tell by its 8-bit RGB if an image of 16 bits uses only the lowest quarter of the range."""
    return int(pixels.max()) < _NARROW


def summed(
    kinds_by_image: Iterable[tuple[str, Collection[str]]], *, total: int, total_16_bits: int
) -> list[dict[str, Any]]:
    """Count the images of each kind of remark that occurs, as records with the total and the first id."""
    names: dict[str, list[str]] = {kind: [] for kind in _WHAT}
    for name, kinds in kinds_by_image:
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
