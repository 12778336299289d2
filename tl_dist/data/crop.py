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


def drawn(seed: int, positions: Any, *, mirror: bool) -> Any:
    """float32 [rows, 4 * ATTEMPTS + 1]: what `cropped` takes for each position, drawn for a whole batch at once."""
    flips = draws.uniform(seed, positions, "flip", 1) if mirror else tf.zeros([tf.shape(positions)[0], 1])
    return tf.concat([draws.uniform(seed, positions, "random_resized_crop", 4 * ATTEMPTS), flips], 1)


def cropped(
    source: Source, index: Any, numbers: Any, *, image_size: int, area: tuple[float, float]
) -> tuple[Any, Any]:
    """uint8 [image_size, image_size, 3] and the label: a random resized crop, by a row of `drawn`.

    Draws are those of the operations `random_resized_crop` and `flip`. Bilinear; where the crop is at least twice the
    target it is halved first, for a JPEG inside the decoder.
    """
    encoded_of = getattr(source, "encoded", None)
    if encoded_of is None:
        image, label = source.read(index)
        crop = _sliced(image, crop_boxes(numbers[None, :-1], tf.shape(image)[:2], area)[0])
    else:
        encoded, label = encoded_of(index)
        crop = _decoded_crop(encoded, numbers[None, :-1], area, image_size)
    resized = tf.numpy_function(_resized, [crop, image_size, numbers[-1] >= 0.5], tf.uint8, stateful=False)
    return tf.ensure_shape(resized, [image_size, image_size, 3]), label


_RATIOS = (1, 2, 4, 8)
_TINY = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()  # in place of what is no JPEG


def _decoded_crop(encoded: Any, numbers: Any, area: tuple[float, float], image_size: int) -> Any:
    """One branch among five: nested ones cost as much as the resize."""
    is_jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    extent = tf.image.extract_jpeg_shape(tf.where(is_jpeg, encoded, _TINY))[:2]
    box = crop_boxes(numbers, extent, area)[0]
    ratio = tf.reduce_min(box[2:]) // image_size
    wanted = tf.reduce_sum(tf.cast(ratio >= _RATIOS[1:], tf.int32))

    def at(ratio: int) -> Any:
        if ratio == 1:
            return tf.image.decode_and_crop_jpeg(encoded, box, channels=3)
        # The crop window of a scaled decoder is in the pixels of its output.
        ends = tf.concat([box[:2], box[:2] + box[2:]], 0)
        ends = tf.cast(tf.round(tf.cast(ends, tf.float32) / ratio), tf.int32)
        window = tf.concat([ends[:2], ends[2:] - ends[:2]], 0)
        return tf.image.decode_and_crop_jpeg(encoded, window, channels=3, ratio=ratio)

    branches = [*(lambda r=r: at(r) for r in _RATIOS), lambda: _whole_then_crop(encoded, numbers, area)]
    return tf.switch_case(tf.where(is_jpeg, wanted, len(_RATIOS)), branches)


def _whole_then_crop(encoded: Any, numbers: Any, area: tuple[float, float]) -> Any:
    image = decode_rgb(encoded)
    return _sliced(image, crop_boxes(numbers, tf.shape(image)[:2], area)[0])


def _sliced(image: Any, box: Any) -> Any:
    return tf.slice(image, [box[0], box[1], 0], [box[2], box[3], 3])


def _resized(crop: np.ndarray, size: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """OpenCV's bilinear resize takes a fifth of the time of TensorFlow's, which works in float32."""
    shortest = min(crop.shape[:2])
    while shortest >= 2 * size:
        crop = cv2.resize(crop, (crop.shape[1] // 2, crop.shape[0] // 2), interpolation=cv2.INTER_AREA)
        shortest //= 2
    image = cv2.resize(crop, (int(size), int(size)), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(image, 1, dst=image) if flipped else image
