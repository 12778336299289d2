"""From an image, or a part of one, of any size to a square."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.data.colour import clipped

cv2.setNumThreads(1)  # tf.data runs many at once


def resize(image: Any, size: int, crop_fraction: float | None = None) -> Any:
    """uint8 [..., h, w, 3] -> uint8 [..., size, size, 3]; bilinear with antialiasing, no copy where the size fits.

    Stretched; or with `crop_fraction` the shorter side becomes size / crop_fraction and the middle square is kept,
    where torchvision's Resize and CenterCrop put it. Only what is kept is computed.
    """
    fits = image.shape[-3] == size and image.shape[-2] == size
    if fits and crop_fraction in (None, 1.0):
        return image
    values = tf.cast(image, tf.float32)
    if crop_fraction is None:
        return clipped(tf.image.resize(values, (size, size), antialias=True))
    extent = tf.shape(image)[-3:-1]
    whole = int(size / crop_fraction) * extent // tf.reduce_min(extent)
    begin = tf.round(tf.cast(whole - size, tf.float32) / 2)
    batched = image.shape.rank == 4
    kept = tf.raw_ops.ScaleAndTranslate(
        images=values if batched else values[None], size=[size, size],
        scale=tf.cast(whole / extent, tf.float32), translation=-begin,
        kernel_type="triangle", antialias=True,
    )  # fmt: skip
    return clipped(kept if batched else kept[0])


def stretch(crop: NDArray[np.uint8], square: NDArray[np.uint8]) -> None:
    """Fill `square` [size, size, 3] with `crop` [h, w, 3]: bilinear with antialiasing, much faster than `resize`.

    That one's filter is a triangle as wide as the scale s. OpenCV's bilinear resize (a fifth of the time) has a
    triangle of width 1: smoothed beforehand by [1 - 1/s, 2/s, 1 - 1/s] / 2 it is the same one for s = 1 and s = 2, and
    near to it between and a little beyond. What is at least twice the square is halved first.
    """
    size, part = len(square), np.asarray(crop)
    shortest = min(part.shape[:2])
    while shortest >= 2 * size:
        part = np.asarray(
            cv2.resize(part, (part.shape[1] // 2, part.shape[0] // 2), interpolation=cv2.INTER_AREA)
        )
        shortest //= 2
    if max(part.shape[:2]) > size:
        vertical, horizontal = (_smoothing(side / size) for side in part.shape[:2])
        part = np.asarray(cv2.sepFilter2D(part, -1, horizontal, vertical, borderType=cv2.BORDER_REPLICATE))
    cv2.resize(part, (size, size), dst=square, interpolation=cv2.INTER_LINEAR)


def _smoothing(scale: float) -> NDArray[np.float32]:
    side = max(0.0, 1 - 1 / scale) / 2
    return np.array([side, 1 - 2 * side, side], np.float32)
