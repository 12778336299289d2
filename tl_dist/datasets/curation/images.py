"""The images of a source through Pillow, for processes that have no TensorFlow."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl_dist.datasets import Source, Splits
from tl_dist.datasets.byte_range import Location
from tl_dist.datasets.preprocess import rgb
from tl_dist.datasets.store import PixelStore
from tl_dist.files import limits
from tl_dist.files.foreign import read_file, read_slice

Stored = Location | NDArray[np.uint8]
"""An encoded image on disk, or pixels [height, width, 3]."""


def stored(source: Source) -> Iterator[Stored]:
    """Each example of a source, as it is kept; nothing for a source that makes its images up."""
    return stored_rows(source, range(source.num_examples))


def stored_rows(source: Source, examples: Iterable[int]) -> Iterator[Stored]:
    """The same of some examples."""
    store = source.store
    if not isinstance(store, PixelStore):
        yield from map(source.location, examples)
        return
    for k in examples:
        if (pixels := store.kept(source.row(k))) is not None:
            yield pixels


def everything(splits: Splits) -> list[tuple[str, str, Stored]]:
    """(split, id, image) of all examples."""
    return [
        (split, name, image)
        for split, source in splits.items()
        for name, image in zip(source.ids, stored(source), strict=False)
    ]


def encoded(image: Location) -> bytes:
    """The bytes of an encoded image; OSError if they cannot be had."""
    if image.length is None:
        return read_file(image.path, max_bytes=limits.ENCODED_IMAGE, links=True)
    return read_slice(image.path, image.offset, image.length)


def opened(image: Stored) -> Image.Image:
    """The image with its header read and its pixels not; OSError or Image.DecompressionBombError if that fails.

    Pillow's reader of headers knows no bounds: whatever is nobody's own is to pass `headers.fault` before.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    found = Image.open(io.BytesIO(encoded(image)))
    if found.width * found.height > limits.IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{found.width} x {found.height} pixels")
    return found


def pixels(image: Stored) -> NDArray[np.uint8]:
    """uint8 RGB [height, width, 3] as training sees them; what `opened` and `preprocess.rgb` raise."""
    return image if isinstance(image, np.ndarray) else rgb(encoded(image))
