"""A random crop of an image file, resized: only the crop is decoded, and no more finely than it is used."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import tensorflow as tf

from tl_dist.data import draws
from tl_dist.data.augment import ATTEMPTS, crop_boxes
from tl_dist.datasets import Source
from tl_dist.datasets.files import decode_rgb

cv2.setNumThreads(1)  # tf.data runs many at once


def cropped(
    source: Source,
    index: Any,
    position: Any,
    *,
    image_size: int,
    area: tuple[float, float],
    seed: int,
    mirror: bool,
) -> tuple[Any, Any]:
    """uint8 [image_size, image_size, 3] and the label: a random resized crop, with `mirror` also flipped half the time.

    Draws are those of the operations `random_resized_crop` and `flip`. Bilinear; where the crop is at least twice the
    target it is halved first, for a JPEG inside the decoder.
    """
    drawn = draws.uniform(seed, position[None], "random_resized_crop", 4 * ATTEMPTS)
    flipped = draws.uniform(seed, position[None], "flip", 1)[0, 0] * 2 >= 1 if mirror else tf.constant(False)
    encoded_of = getattr(source, "encoded", None)
    if encoded_of is None:
        image, label = source.read(index)
        crop = _sliced(image, crop_boxes(drawn, tf.shape(image)[:2], area)[0])
    else:
        encoded, label = encoded_of(index)
        crop = tf.cond(
            tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff",
            lambda: _decoded_crop(encoded, drawn, area, image_size),
            lambda: _whole_then_crop(encoded, drawn, area),
        )
    resized = tf.numpy_function(_resized, [crop, image_size, flipped], tf.uint8, stateful=False)
    return tf.ensure_shape(resized, [image_size, image_size, 3]), label


def _decoded_crop(encoded: Any, drawn: Any, area: tuple[float, float], image_size: int) -> Any:
    box = crop_boxes(drawn, tf.image.extract_jpeg_shape(encoded)[:2], area)[0]
    halvings = tf.cast(
        tf.math.log(tf.cast(tf.reduce_min(box[2:]), tf.float32) / image_size) / np.log(2.0), tf.int32
    )

    def at(ratio: int) -> Any:
        # The crop window of a scaled decoder is in the pixels of its output.
        ends = tf.concat([box[:2], box[:2] + box[2:]], 0)
        ends = tf.cast(tf.round(tf.cast(ends, tf.float32) / ratio), tf.int32)
        window = tf.concat([ends[:2], ends[2:] - ends[:2]], 0)
        return tf.image.decode_and_crop_jpeg(encoded, window, channels=3, ratio=ratio)

    return tf.switch_case(tf.clip_by_value(halvings, 0, 3), [lambda r=r: at(r) for r in (1, 2, 4, 8)])


def _whole_then_crop(encoded: Any, drawn: Any, area: tuple[float, float]) -> Any:
    image = decode_rgb(encoded)
    return _sliced(image, crop_boxes(drawn, tf.shape(image)[:2], area)[0])


def _sliced(image: Any, box: Any) -> Any:
    return tf.slice(image, [box[0], box[1], 0], [box[2], box[3], 3])


def _resized(crop: np.ndarray, size: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """OpenCV's bilinear resize takes a fifth of the time of TensorFlow's, which works in float32."""
    shortest = min(crop.shape[:2])
    while shortest >= 2 * size:
        crop = cv2.resize(crop, (crop.shape[1] // 2, crop.shape[0] // 2), interpolation=cv2.INTER_AREA)
        shortest //= 2
    image = cv2.resize(crop, (int(size), int(size)), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(image, 1) if flipped else image
