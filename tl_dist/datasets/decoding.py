"""Pixels from encoded images, inside tf.data."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets.gif import first_frame_alone

JPEG_OPTIONS = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
"""of every JPEG decoder: as Pillow and OpenCV have it. TensorFlow's default is up to 12 levels off, and no faster."""


def decode_rgb(encoded: Any) -> Any:
    """uint8 [height, width, 3] from the bytes of a PNG, JPEG, GIF, BMP or WebP, told apart by their content.

    Grey and paletted images become RGB, 16 bits become 8, a CMYK JPEG is converted without colour management.
    Alpha is dropped, not blended; of an animation the first frame is taken; the orientation in EXIF data is
    ignored. A damaged image is an InvalidArgumentError when the graph runs.
    """
    import tensorflow as tf

    def other() -> Any:
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    head = tf.strings.substr(encoded, 0, 12)
    image = tf.case(
        [
            (
                tf.strings.substr(head, 0, 3) == b"\xff\xd8\xff",
                lambda: tf.io.decode_jpeg(encoded, **JPEG_OPTIONS),
            ),
            (tf.strings.substr(head, 0, 2) == b"BM", lambda: _decode_bmp(encoded)),
            (tf.strings.substr(head, 0, 4) == b"GIF8", lambda: _decode_gif(encoded)),
            (tf.strings.regex_full_match(head, r"RIFF\C{4}WEBP"), lambda: _decode_webp(encoded)),
        ],
        default=other,
    )
    return tf.ensure_shape(image, [None, None, 3])


def _decode_bmp(encoded: Any) -> Any:
    """TensorFlow ignores the palette of an 8-bit BMP, which alone says what its pixels mean."""
    import tensorflow as tf

    pixels = tf.io.decode_bmp(encoded)

    def with_palette() -> Any:
        # File header of 14 bytes, whose last 4 say where the pixels begin; info header, whose first 4 give
        # its size; palette of (blue, green, red, 0).
        ends = tf.io.decode_raw(tf.strings.substr(encoded, 10, 8), tf.int32)
        begin = 14 + ends[1]
        palette = tf.io.decode_raw(tf.strings.substr(encoded, begin, ends[0] - begin), tf.uint8)
        colours = tf.reshape(palette, [-1, 4])[:, 2::-1]
        return tf.gather(colours, tf.cast(pixels[:, :, 0], tf.int32))

    return tf.cond(tf.shape(pixels)[2] == 1, with_palette, lambda: pixels[:, :, :3])


def _decode_gif(encoded: Any) -> Any:
    """TensorFlow decodes every frame before it takes the first: of a few megabytes of them, many gigabytes."""
    import tensorflow as tf

    def alone(content: Any) -> bytes:
        return first_frame_alone(content if isinstance(content, bytes) else content.item())

    first = tf.numpy_function(alone, [encoded], tf.string, stateful=False)
    return tf.io.decode_image(tf.ensure_shape(first, []), channels=3, expand_animations=False)


def _decode_webp(encoded: Any) -> Any:
    """By Pillow: TensorFlow 2.21 knows WebP, but an animated one ends the process."""
    import tensorflow as tf

    def decode(content: Any) -> NDArray[np.uint8]:
        from PIL import Image

        content = content if isinstance(content, bytes) else content.item()  # an array when called eagerly
        try:
            with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
                return np.asarray(image.convert("RGB"))
        except Exception as error:
            raise ValueError(f"damaged WebP: {error}") from error

    return tf.numpy_function(decode, [encoded], tf.uint8, stateful=False)
