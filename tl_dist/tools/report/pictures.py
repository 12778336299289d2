"""Thumbnails of examples inside the page: `data:` addresses of WebP, made without TensorFlow."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl_dist.datasets import Source
from tl_dist.datasets.curation import images

SIDE = 112
"""pixels of the longer side: sharp at the size of a tile, and a page with a thousand of them has 4 MB"""
HEAT_SIDE = 176
_QUALITY = 60
_THREADS = 4


def thumbnails(source: Source, examples: Iterable[int]) -> Mapping[int, str]:
    """Return thumbnails by example; images that cannot be decoded, and generated images, have none."""
    wanted = list(examples)
    every = images.stored(source, wanted)
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore")  # Pillow's, about files that passed the check of their headers
        addresses = pool.map(_thumbnail, every)
        return {k: address for k, address in zip(wanted, addresses, strict=False) if address is not None}


def _thumbnail(image: images.Stored) -> str | None:
    try:
        return address_of(images.pixels(image), SIDE)
    except images.ERRORS:
        return None


def address_of(picture: Image.Image | NDArray[np.uint8], side: int) -> str:
    """Encode a picture, scaled to `side` pixels on its longer side, as a `data:` address."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    scale = side / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    kind = Image.Resampling.NEAREST if scale > 3 else Image.Resampling.LANCZOS
    content = io.BytesIO()
    image.resize((width, height), kind).save(content, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
