"""From an image file to the model's input, as in training: needs NumPy and Pillow alone, and classes.json beside it.

from preprocess import class_names, load

images = np.stack([load("cell.png")])   # uint8 [1, size, size, 3], what every export takes
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_FILE = Path(__file__).with_name("classes.json")
_SETTINGS = json.loads(_FILE.read_text(encoding="utf-8")) if _FILE.exists() else {}
class_names: list[str] = _SETTINGS.get("class_names", [])


def load(file: Any, size: int = 0, crop_fraction: float | None = None) -> np.ndarray:
    """uint8 RGB [size, size, 3] from a path or an open file; both settings are those of the model by default."""
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    if not size:
        size, crop_fraction = _SETTINGS["image_size"], _SETTINGS["crop_fraction"]
    return resized(pixels, size, crop_fraction)


def resized(image: np.ndarray, size: int, crop_fraction: float | None) -> np.ndarray:
    """Bilinear with antialiasing, as `tf.image.resize(antialias=True)`.

    Stretched; or with `crop_fraction` the shorter side becomes size / crop_fraction and the middle square is kept.
    """
    extent = np.array(image.shape[:2])
    if (extent == size).all() and crop_fraction in (None, 1.0):
        return image
    if crop_fraction is None:
        whole, begin = np.array([size, size]), np.zeros(2, np.float32)
    else:
        whole = int(size / crop_fraction) * extent // extent.min()
        begin = np.rint((whole - size) / 2).astype(np.float32)
    rows, columns = (
        _weights(int(extent[k]), size, np.float32(whole[k] / extent[k]), begin[k]) for k in range(2)
    )
    tall = np.einsum("yh,hwc->ywc", rows, image.astype(np.float32))
    square = np.einsum("xw,ywc->yxc", columns, tall)
    return np.clip(np.rint(square), 0, 255).astype(np.uint8)


def _weights(length: int, size: int, scale: np.float32, begin: np.float32) -> np.ndarray:
    """float32 [size, length]: what each pixel of a line adds to each of the resized line, a triangle."""
    centre = (np.arange(size, dtype=np.float32) + np.float32(0.5) + begin) / scale
    width = max(np.float32(1), 1 / scale)
    distance = np.abs(np.arange(length, dtype=np.float32) + np.float32(0.5) - centre[:, None]) / width
    weights = np.maximum(0, 1 - distance)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
