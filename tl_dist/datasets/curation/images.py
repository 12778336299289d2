"""Read the images of a source with Pillow, for processes without TensorFlow, and name what training does to them."""

import struct
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl_dist.datasets import Source
from tl_dist.datasets.headers import fault
from tl_dist.datasets.preprocess import exif_orientation, is_deep, rgb
from tl_dist.datasets.store import Location, PixelStore

Stored = Location | NDArray[np.uint8]
"""an encoded image on disk, or pixels [height, width, 3]"""

ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, AssertionError),
    *(struct.error, Image.DecompressionBombError),
)
"""what Pillow and `preprocess.rgb` raise for a damaged image: nearly anything"""

DEEP, NARROW = "16 bits", "narrow"
_REMARKS = {
    NARROW: "images of 16 bits use only the lower 14 or fewer: training sees at most 0 to 63 of 0 to 255",
    "orientation": "images are turned by their EXIF orientation",
    "alpha": "images may be transparent: they are composited on white",
    DEEP: "images have more than 8 bits a channel: they are scaled to 8",
    "cmyk": "images are CMYK: they become RGB without a colour profile",
}


def stored(source: Source, examples: Iterable[int] | None = None) -> Iterator[Stored]:
    """Yield examples, by default all, of a source as they are stored; nothing if it generates its images."""
    examples = range(source.num_examples) if examples is None else examples
    store = source.store
    if not isinstance(store, PixelStore):
        yield from map(source.location, examples)
        return
    for k in examples:
        if (pixels := store.kept(source.row(k))) is not None:
            yield pixels


def pixels(image: Stored) -> NDArray[np.uint8]:
    """Decode uint8 RGB [height, width, 3] as training sees it; raises ERRORS."""
    if isinstance(image, np.ndarray):
        return image
    if (damage := fault(image)) is not None:  # Pillow's header readers have no bounds
        raise ValueError(damage.reason)
    return rgb(image.read())


def traits(image: Image.Image) -> frozenset[str]:
    """Name what training does to an image that Pillow has opened, from its header alone."""
    if image.format == "TIFF":
        is_turned = image.tag_v2.get(0x0112) in range(2, 9)  # type: ignore[attr-defined]
    else:
        is_turned = exif_orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0")) != 1
    present = (is_turned, image.has_transparency_data, is_deep(image), image.mode == "CMYK")
    return frozenset(name for name, has in zip(("orientation", "alpha", DEEP, "cmyk"), present, strict=True) if has)


def is_narrow(pixels: NDArray[np.uint8]) -> bool:
    """Tell by its 8-bit RGB if an image of 16 bits uses only the lowest quarter of the range."""
    return int(pixels.max()) < 1 << 6


def remarks(
    kinds_by_image: Iterable[tuple[str, Collection[str]]], *, total: int, total_16_bits: int
) -> list[dict[str, Any]]:
    """Count the images of each kind of remark that occurs, as records with the total and the first id."""
    names: dict[str, list[str]] = {kind: [] for kind in _REMARKS}
    for name, kinds in kinds_by_image:
        for kind in kinds:
            names[kind].append(name)
    return [
        {
            "kind": kind,
            "what": what,
            "count": len(names[kind]),
            "of": total_16_bits if kind == NARROW else total,
            "example": names[kind][0],
        }
        for kind, what in _REMARKS.items()
        if names[kind]
    ]
