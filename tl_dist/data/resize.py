"""Resize an image, or a part of one, of any size to a square."""

from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.config.data import STRETCHED, Square

cv2.setNumThreads(1)  # tf.data runs many at once


def clipped(images: Any) -> Any:
    """Round floats to uint8."""
    return tf.cast(tf.clip_by_value(tf.round(images), 0, 255), tf.uint8)


def resize(image: Any, size: int, square: Square = STRETCHED) -> Any:
    """Resize uint8 [..., h, w, 3] to [..., size, size, 3] with antialiasing; no copy if the size fits.

    Without a crop fraction the image is stretched. With it, the shorter side becomes size / fraction and the middle
    square is kept, the same as by torchvision's Resize and CenterCrop. Only the square is computed. Both filters are
    Pillow's, which rounds, and clips what bicubic overshoots, between its two passes.
    """
    crop_fraction, interpolation = square
    fits = image.shape[-3] == size and image.shape[-2] == size
    if fits and crop_fraction in (None, 1.0):
        return image
    values = tf.cast(image, tf.float32)
    if crop_fraction is None:
        return clipped(tf.image.resize(values, (size, size), interpolation, antialias=True))
    extent = tf.shape(image)[-3:-1]
    whole = int(size / crop_fraction) * extent // tf.reduce_min(extent)
    begin = tf.round(tf.cast(whole - size, tf.float32) / 2)
    batched = image.shape.rank == 4
    middle = tf.raw_ops.ScaleAndTranslate(
        images=values if batched else values[None], size=[size, size],
        scale=tf.cast(whole / extent, tf.float32), translation=-begin,
        kernel_type="triangle" if interpolation == "bilinear" else "keyscubic", antialias=True,
    )  # fmt: skip
    return clipped(middle if batched else middle[0])


def stretch(crop: NDArray[np.uint8], square: NDArray[np.uint8]) -> None:
    """Fill `square` [size, size, 3] with `crop` [h, w, 3]: bilinear with antialiasing, much faster than `resize`.

    The filter of `resize` is a triangle as wide as the scale s. OpenCV's bilinear resize (a fifth of the time) has a
    triangle of width 1: after smoothing by [1 - 1/s, 2/s, 1 - 1/s] / 2 it is the same filter for s = 1 and s = 2, and
    close to it between and slightly beyond. A crop of at least twice the size is halved first.
    """
    size, part = len(square), np.asarray(crop)
    shortest = min(part.shape[:2])
    while shortest >= 2 * size:
        part = np.asarray(cv2.resize(part, (part.shape[1] // 2, part.shape[0] // 2), interpolation=cv2.INTER_AREA))
        shortest //= 2
    if max(part.shape[:2]) > size:
        vertical, horizontal = (_smoothing(side / size) for side in part.shape[:2])
        part = np.asarray(cv2.sepFilter2D(part, -1, horizontal, vertical, borderType=cv2.BORDER_REPLICATE))
    cv2.resize(part, (size, size), dst=square, interpolation=cv2.INTER_LINEAR)


def _smoothing(scale: float) -> NDArray[np.float32]:
    side = max(0.0, 1 - 1 / scale) / 2
    return np.array([side, 1 - 2 * side, side], np.float32)
