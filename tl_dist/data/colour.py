"""Changes of colour of whole batches."""

from typing import Any

import numpy as np
import tensorflow as tf

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # luma of ITU-R BT.601
_TO_YIQ = np.array([GREY, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32)


def clipped(images: Any) -> Any:
    """Round floats to uint8."""
    return tf.cast(tf.clip_by_value(tf.round(images), 0, 255), tf.uint8)


def jittered(images: Any, drawn: Any, strength: float, hue: float) -> Any:
    """Multiply brightness, contrast and saturation by up to 1 +- `strength`; rotate the hue by up to +- `hue` turns.

    `images` uint8 [rows, h, w, 3]; `drawn` float32 [rows, 4] in [0, 1). The order is fixed and values are clipped once,
    at the end, so that all four are one linear map of a pixel's colour, applied in one pass over the image.
    """
    factors = 1 + strength * (2 * drawn[:, :3, None] - 1)
    bright, contrast, saturation = factors[:, 0, :, None], factors[:, 1, :, None], factors[:, 2, :, None]
    identity, to_grey = tf.eye(3), tf.constant(np.outer(np.ones(3, np.float32), GREY))
    turned = saturation * identity + (1 - saturation) * to_grey
    angle = 2 * np.pi * hue * (2 * drawn[:, 3] - 1)
    matrix = tf.matmul(_hue(angle), turned) * bright
    values = tf.cast(images, tf.float32)
    middle = tf.reduce_mean(tf.matmul(_pixels(values), tf.constant(GREY[:, None])), axis=1, keepdims=True)
    moved = tf.matmul(_pixels(values), matrix * contrast, transpose_b=True) + bright * (1 - contrast) * middle
    return clipped(tf.reshape(moved, tf.shape(images)))


def _hue(angle: Any) -> Any:
    """Return rotations [rows, 3, 3] of the two colour axes, which leave grey unchanged."""
    zeros, ones = tf.zeros_like(angle), tf.ones_like(angle)
    turn = [
        [ones, zeros, zeros],
        [zeros, tf.cos(angle), -tf.sin(angle)],
        [zeros, tf.sin(angle), tf.cos(angle)],
    ]
    rotation = tf.transpose(tf.stack([tf.stack(row) for row in turn]), [2, 0, 1])
    return tf.constant(np.linalg.inv(_TO_YIQ)) @ rotation @ tf.constant(_TO_YIQ)


def _pixels(images: Any) -> Any:
    return tf.reshape(images, [tf.shape(images)[0], -1, 3])
