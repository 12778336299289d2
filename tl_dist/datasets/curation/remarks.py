"""What training does to images without a word, though it may not be what their owner wants."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile

_WHAT = {
    "narrow": "images of 16 bits use the lower 14 or fewer: training takes the high byte, and sees 0 to 63 at most",
    "orientation": "images are to be turned by their EXIF orientation, which is ignored",
    "alpha": "images have an alpha channel, which is dropped, not blended",
}
_NARROW = 1 << 6


def by_header(image: Image.Image) -> list[str]:
    """Which remarks an opened image deserves; its pixels are not decoded."""
    found = ["alpha"] if image.has_transparency_data else []
    # Asked of a PNG without such data, Pillow would decode it to look behind the pixels.
    if "exif" in image.info and _orientation(image) != 1:
        found.append("orientation")
    return found


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever Pillow raises on damaged metadata, which no decoder looks at
        return 1


def has_16_bits(image: Image.Image) -> bool:
    """Whether an opened image is a PNG of 16 bits a channel: Pillow shows it in the decoder's arguments alone."""
    return isinstance(image, ImageFile.ImageFile) and image.format == "PNG" and ";16" in str(image.tile)


def is_narrow(pixels: Image.Image) -> bool:
    """Whether an image of 16 bits uses the lowest quarter alone, by its 8-bit RGB."""
    return int(np.asarray(pixels).max()) < _NARROW


def summed(
    found: Iterable[tuple[str, Collection[str]]], *, total: int, total_16_bits: int
) -> list[dict[str, Any]]:
    """One record for each kind of remark that occurs: how many of how many images, and the id of the first."""
    names: dict[str, list[str]] = {kind: [] for kind in _WHAT}
    for name, kinds in found:
        for kind in kinds:
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
