"""Read the images of a source with Pillow, for processes without TensorFlow."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl_dist.datasets import Source, Splits
from tl_dist.datasets.preprocess import rgb
from tl_dist.datasets.store import Location, PixelStore
from tl_dist.files import limits
from tl_dist.files.foreign import read_file, read_slice

Stored = Location | NDArray[np.uint8]
"""an encoded image on disk, or pixels [height, width, 3]"""


def stored(source: Source) -> Iterator[Stored]:
    """Yield each example of a source as it is stored; nothing for a source that generates its images."""
    return stored_rows(source, range(source.num_examples))


def stored_rows(source: Source, examples: Iterable[int]) -> Iterator[Stored]:
    """Yield these examples of a source as `stored` does."""
    store = source.store
    if not isinstance(store, PixelStore):
        yield from map(source.location, examples)
        return
    for k in examples:
        if (pixels := store.kept(source.row(k))) is not None:
            yield pixels


def everything(splits: Splits) -> list[tuple[str, str, Stored]]:
    """List (split, id, image) of all examples."""
    return [
        (split, name, image)
        for split, source in splits.items()
        for name, image in zip(source.ids, stored(source), strict=False)
    ]


def encoded(image: Location) -> bytes:
    """Read the bytes of an encoded image; raises OSError if that fails."""
    if image.length is None:
        return read_file(image.path, max_bytes=limits.ENCODED_IMAGE, links=True)
    return read_slice(image.path, image.offset, image.length)


def opened(image: Stored) -> Image.Image:
    """Open an image without decoding its pixels; raises OSError or Image.DecompressionBombError.

    Pillow's header readers have no bounds, so untrusted images must pass `headers.fault` first.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    picture = Image.open(io.BytesIO(encoded(image)))
    if picture.width * picture.height > limits.IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels")
    return picture


def pixels(image: Stored) -> NDArray[np.uint8]:
    """Decode uint8 RGB [height, width, 3] as training sees it; raises as `encoded` and `preprocess.rgb` do."""
    return image if isinstance(image, np.ndarray) else rgb(encoded(image))
