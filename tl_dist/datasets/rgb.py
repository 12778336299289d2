"""An image as training sees it, by Pillow: for processes that have no TensorFlow."""

from __future__ import annotations

import numpy as np
from PIL import Image


def rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, decoded now; alpha is dropped. Of 16 bits the high byte is taken, as by TensorFlow; Pillow clips."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
