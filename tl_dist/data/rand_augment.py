"""RandAugment (Cubuk et al., arXiv 1909.13719): random operations of a fixed list, at one strength.

The list and the strengths are torchvision's, with 31 magnitudes. Each row of a batch runs only its own operations.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.data.resize import clipped

GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""luma of ITU-R BT.601"""
MAX_MAGNITUDE = 30


def rand_augmented(images: Any, draw: Callable[[int], Any], num: int, magnitude: int) -> Any:
    """Apply to each row of uint8 [rows, size, size, 3] `num` operations in turn, of strength `magnitude` of 30."""
    drawn = tf.reshape(draw(2 * num), [-1, num, 2])
    which = tf.cast(drawn[:, :, 0] * len(OPERATIONS), tf.int32)
    sign = tf.where(drawn[:, :, 1] < 0.5, -1.0, 1.0)
    strength = magnitude / MAX_MAGNITUDE

    def augmented_row(row: tuple[Any, Any, Any]) -> Any:
        image, chosen, signs = row
        for k in range(num):
            branches = [partial(operation, image, strength, signs[k]) for operation in OPERATIONS.values()]
            image = tf.switch_case(chosen[k], branches)
        return image

    return tf.map_fn(
        augmented_row, (images, which, sign), fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8)
    )


def _affine(image: Any, transform: list[Any]) -> Any:
    """Take output (x, y) from input (a x + b y + c, d x + e y + f): nearest pixel, black outside."""
    values = [tf.cast(value, tf.float32) for value in transform]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None], transforms=tf.stack([*values, 0.0, 0.0])[None], output_shape=tf.shape(image)[:2],
        interpolation="NEAREST", fill_mode="CONSTANT", fill_value=0.0,
    )[0]  # fmt: skip


def _rotate(image: Any, strength: float, sign: Any) -> Any:
    angle = sign * strength * math.radians(30)
    middle = (image.shape[0] - 1) / 2
    cos, sin = tf.cos(angle), tf.sin(angle)
    shift_x, shift_y = middle - cos * middle + sin * middle, middle - sin * middle - cos * middle
    return _affine(image, [cos, -sin, shift_x, sin, cos, shift_y])


def _blend(other: Any, image: Any, factor: Any) -> Any:
    values = tf.cast(image, tf.float32)
    return clipped(other + factor * (values - other))


def _grey(image: Any) -> Any:
    return tf.reduce_sum(tf.cast(image, tf.float32) * tf.constant(GREY), axis=-1, keepdims=True)


def _sharpness(image: Any, strength: float, sign: Any) -> Any:
    """Move away from, or toward, a 3 x 3 smoothing; the border keeps its values."""
    values = tf.cast(image, tf.float32)
    kernel = tf.constant([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = tf.nn.depthwise_conv2d(
        values[None], tf.tile(kernel[..., None, None], [1, 1, 3, 1]), [1, 1, 1, 1], "VALID"
    )[0]
    edge = tf.pad(tf.ones_like(smooth), [[1, 1], [1, 1], [0, 0]])
    smooth = tf.where(edge > 0, tf.pad(smooth, [[1, 1], [1, 1], [0, 0]]), values)
    return _blend(smooth, image, 1 + sign * 0.9 * strength)


def _posterize(image: Any, strength: float, sign: Any) -> Any:
    dropped_bits = round(4 * strength)
    return tf.bitwise.bitwise_and(image, tf.constant(256 - (1 << dropped_bits), tf.uint8))


def _solarize(image: Any, strength: float, sign: Any) -> Any:
    return tf.where(tf.cast(image, tf.float32) >= 255.0 * (1 - strength), 255 - image, image)


def _auto_contrast(image: Any, strength: float, sign: Any) -> Any:
    """Stretch each channel to the range 0 to 255."""
    values = tf.cast(image, tf.float32)
    low, high = tf.reduce_min(values, (0, 1)), tf.reduce_max(values, (0, 1))
    stretched = (values - low) * (255.0 / tf.maximum(high - low, 1.0))
    return clipped(tf.where(high > low, stretched, values))


def _equalize(image: Any, strength: float, sign: Any) -> Any:
    """Equalize each channel's histogram by Pillow's rule."""

    def channel(values: Any) -> Any:
        counts = tf.math.bincount(tf.reshape(tf.cast(values, tf.int32), [-1]), minlength=256, maxlength=256)
        last = tf.gather(counts, tf.reduce_max(tf.cast(values, tf.int32)))
        step = (tf.reduce_sum(counts) - last) // 255
        table = (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1)
        table = tf.where(step > 0, tf.clip_by_value(table, 0, 255), tf.range(256))
        return tf.cast(tf.gather(table, tf.cast(values, tf.int32)), tf.uint8)

    return tf.stack([channel(image[:, :, k]) for k in range(3)], axis=-1)


_Operation = Callable[[Any, float, Any], Any]
OPERATIONS: Mapping[str, _Operation] = {
    "identity": lambda image, strength, sign: tf.identity(image),
    "shear_x": lambda image, strength, sign: _affine(image, [1, sign * 0.3 * strength, 0, 0, 1, 0]),
    "shear_y": lambda image, strength, sign: _affine(image, [1, 0, 0, sign * 0.3 * strength, 1, 0]),
    "translate_x": lambda image, strength, sign: _affine(
        image, [1, 0, sign * 150 / 331 * strength * image.shape[1], 0, 1, 0]
    ),
    "translate_y": lambda image, strength, sign: _affine(
        image, [1, 0, 0, 0, 1, sign * 150 / 331 * strength * image.shape[0]]
    ),
    "rotate": _rotate,
    "brightness": lambda image, strength, sign: _blend(0.0, image, 1 + sign * 0.9 * strength),
    "colour": lambda image, strength, sign: _blend(_grey(image), image, 1 + sign * 0.9 * strength),
    "contrast": lambda image, strength, sign: _blend(tf.reduce_mean(_grey(image)), image, 1 + sign * 0.9 * strength),
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
}
