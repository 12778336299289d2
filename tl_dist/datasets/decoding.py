"""Decode images inside tf.data to the pixels of `preprocess.rgb`, with TensorFlow where it can."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.datasets.preprocess import rgb

JPEG_OPTIONS = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
"""for every JPEG decoder, as in Pillow and OpenCV; TensorFlow's default is up to 12 levels off and no faster"""
BY_PILLOW = ("BMP", "GIF", "WebP", "TIFF")
"""kinds of images that `decode_rgb` leaves to `preprocess.rgb`"""

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_SEGMENTS = 10_000


def _apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile what a branch of a condition computes as a function call, traced once for all graphs.

    Inlined, its nodes would cost time even if the branch is not taken.
    """
    compiled = tf.function(function, experimental_attributes={"_noinline": True}, autograph=False)

    @wraps(function)
    def call(*tensors: Any) -> Any:
        return (function if tf.executing_eagerly() else compiled)(*tensors)

    return call


def decode_rgb(encoded: Any) -> Any:
    """Decode the bytes of a PNG, JPEG, GIF, BMP, WebP or TIFF, told apart by content, to uint8 [height, width, 3].

    A damaged image raises InvalidArgumentError when the graph runs.
    """
    head = tf.strings.substr(encoded, 0, 12)
    image = tf.case(
        [
            (tf.strings.substr(head, 0, 3) == _JPEG, lambda: decode_jpeg(encoded)),
            (
                tf.strings.regex_full_match(head, r"RIFF\C{4}WEBP|(BM|GIF8|II\*\x00|MM\x00\*)\C*"),
                lambda: _by_pillow(encoded),
            ),
        ],
        default=lambda: decode_png(encoded),
    )
    return tf.ensure_shape(image, [None, None, 3])


def decode_jpeg(encoded: Any) -> Any:
    """Decode a JPEG to uint8 [height, width, 3], with operations that TensorFlow Serving has."""
    image = tf.io.decode_jpeg(encoded, **JPEG_OPTIONS)
    return turned(image, jpeg_orientations(encoded[None])[0])


def decode_png(encoded: Any) -> Any:
    """Decode a PNG to uint8 [height, width, 3]; for other bytes the error says that they are no image."""
    bits, colour = tf.unstack(_numbers(encoded[None], tf.constant([24]), 2)[0])
    # Most have neither 16 bits nor alpha, and nothing before their pixels.
    is_plain = (bits <= 8) & (colour < 4) & (_text(encoded, 37, 4) == b"IDAT")
    is_png = tf.strings.substr(encoded, 0, 8) == _PNG
    return tf.cond(
        is_png & ~is_plain,
        lambda: _any_png(encoded, bits, colour),
        lambda: tf.io.decode_png(encoded, channels=3),
    )


@_apart
def _any_png(encoded: Any, bits: Any, colour: Any) -> Any:
    def plain() -> Any:
        return tf.io.decode_png(encoded, channels=3)

    def with_alpha() -> Any:
        return _on_white(tf.cast(tf.io.decode_png(encoded, channels=4), tf.int32))

    def of_16_bits() -> Any:
        deep = tf.io.decode_png(encoded, channels=4, dtype=tf.uint16)
        return _on_white((tf.cast(deep, tf.int32) + 128) // 257)

    transparent, begin, size = _png_chunks(encoded)
    image = tf.case([(bits == 16, of_16_bits), (transparent | (colour >= 4), with_alpha)], default=plain)
    return turned(image, _orientations(encoded[None], begin[None], size[None])[0])


def turned(image: Any, orientation: Any) -> Any:
    """Orient an image [height, width, channels] for display by its EXIF orientation 1 to 8, a scalar int32."""
    return tf.cond(orientation > 1, lambda: _oriented(image, orientation), lambda: image)


@_apart
def _oriented(image: Any, orientation: Any) -> Any:
    def transposed() -> Any:
        # By tf.gather: oneDNN logs an error for each graph that transposes uint8, which it leaves to Eigen.
        height, width, channels = tf.unstack(tf.shape(image))
        places = tf.range(width)[:, None] + tf.range(height) * width
        return tf.gather(tf.reshape(image, [-1, channels]), places)

    upright = tf.cond(orientation >= 5, transposed, lambda: image)
    return tf.raw_ops.Reverse(tensor=upright, dims=tf.concat([_flips(orientation), [False]], 0))


def stored_boxes(boxes: Any, extents: Any, orientations: Any) -> Any:
    """Map boxes int32 [rows, (y, x, height, width)] of oriented images of these extents to boxes of the stored ones."""
    begin, size = boxes[:, :2], boxes[:, 2:]
    begin = tf.where(_flips(orientations), extents - begin - size, begin)
    across = (orientations >= 5)[:, None]
    return tf.where(across, tf.concat([begin[:, ::-1], size[:, ::-1]], 1), tf.concat([begin, size], 1))


def _flips(orientations: Any) -> Any:
    """Return bool [..., 2]: if rows, and if columns, are reversed after the transposition."""
    none, columns, both, rows = (False, False), (False, True), (True, True), (True, False)
    table = tf.constant([none, none, columns, both, rows, none, columns, both, rows])
    return tf.gather(table, orientations)


def jpeg_orientations(encoded: Any) -> Any:
    """Return int32 [rows]: `preprocess.jpeg_orientation` 1 to 8 of each JPEG of string [rows], 1 for other images."""
    # Most have a JFIF segment followed by their tables, and so no EXIF data.
    is_bare = (tf.strings.substr(encoded, 0, 6) == b"\xff\xd8\xff\xe0\0\x10") & (_text(encoded, 20, 2) == b"\xff\xdb")
    return tf.cond(
        tf.reduce_all(is_bare),
        lambda: tf.ones(tf.shape(encoded), tf.int32),
        lambda: _searched_orientations(encoded),
    )


@_apart
def _searched_orientations(encoded: Any) -> Any:
    def is_exif(head: Any) -> Any:
        is_app1 = (head[:, 0] == 0xFF) & (head[:, 1] == 0xE1)
        return is_app1 & tf.reduce_all(head[:, 4:] == list(b"Exif\0\0"), 1)

    def is_skipped(head: Any) -> Any:
        is_app_or_comment = (head[:, 0] == 0xFF) & ((head[:, 1] // 16 == 0xE) | (head[:, 1] == 0xFE))
        return is_app_or_comment & ~is_exif(head)

    def next_segment(at: Any, head: Any) -> Any:
        at = tf.where(is_skipped(head), at + 2 + 256 * head[:, 2] + head[:, 3], at)
        return at, _numbers(encoded, at, 10)

    is_jpeg = tf.strings.substr(encoded, 0, 3) == _JPEG
    at = tf.where(is_jpeg, 2, tf.strings.length(encoded))
    at, head = tf.while_loop(
        lambda at, head: tf.reduce_any(is_skipped(head)),
        next_segment,
        (at, _numbers(encoded, at, 10)),
        maximum_iterations=_SEGMENTS,
        parallel_iterations=1,
    )
    size = tf.where(is_exif(head), 256 * head[:, 2] + head[:, 3] - 8, 0)
    return _orientations(encoded, at + 10, size)


def _png_chunks(encoded: Any) -> tuple[Any, Any, Any]:
    """Return from the chunks before the pixels: if there is a tRNS chunk, and begin and size of EXIF data."""
    total = tf.strings.length(encoded)

    def is_before_pixels(at: Any, *_state: Any) -> Any:
        return (at < total) & (_text(encoded, at + 4, 4) != b"IDAT")

    def next_chunk(at: Any, transparent: Any, begin: Any, length: Any) -> tuple[Any, ...]:
        size = _value(_numbers(encoded[None], at[None], 4), False)[0]  # negative from 2^31 on
        size = tf.where((size < 0) | (size > total - at), total - at, size)
        kind = _text(encoded, at + 4, 4)
        first = (kind == b"eXIf") & (begin == 0)
        return (
            tf.minimum(at + 12 + size, total),
            transparent | (kind == b"tRNS"),
            tf.where(first, at + 8, begin),
            tf.where(first, size, length),
        )

    start = (tf.constant(8), tf.constant(False), tf.constant(0), tf.constant(0))
    state = tf.while_loop(is_before_pixels, next_chunk, start, maximum_iterations=_SEGMENTS, parallel_iterations=1)
    return state[1:]


def _orientations(encoded: Any, begin: Any, size: Any) -> Any:
    """Return int32 [rows]: the orientation in the EXIF data of `size` bytes from `begin` of each of string [rows]."""

    def read() -> Any:
        length = tf.minimum(size, tf.strings.length(encoded) - begin)
        head = _numbers(encoded, begin, 8)
        little = tf.reduce_all(head[:, :4] == list(b"II*\0"), 1)
        known = (little | tf.reduce_all(head[:, :4] == list(b"MM\0*"), 1)) & (length >= 8)
        at = _value(head[:, 4:], little)
        at = tf.where((at < 0) | (at > length), length, at)
        count = tf.where(at + 2 <= length, _value(_numbers(encoded, begin + at, 2), little), 0)
        count = tf.clip_by_value((length - at - 2) // 12, 0, count)
        most = tf.maximum(1, tf.reduce_max(count))
        entries = tf.reshape(_numbers(encoded, begin + at + 2, 12 * most), [-1, most, 12])
        tags = _value(entries[:, :, :2], little[:, None])
        ours = (tags == 0x0112) & (tf.range(most) < count[:, None])
        entry = tf.gather(entries, tf.argmax(tf.cast(ours, tf.int32), 1), batch_dims=1)
        kind, number, value = (_value(entry[:, a:b], little) for a, b in ((2, 4), (4, 8), (8, 10)))
        valid = tf.reduce_any(ours, 1) & (kind == 3) & (number == 1) & (value >= 1) & (value <= 8)
        return tf.where(known & valid, value, 1)

    return tf.cond(tf.reduce_any(size > 0), read, lambda: tf.ones_like(size))


def _text(encoded: Any, at: Any, num: int) -> Any:
    """Return up to `num` bytes from `at`; none if `at` is out of range."""
    at = tf.minimum(tf.maximum(at, 0), tf.strings.length(encoded))
    return tf.strings.substr(encoded, at, tf.fill(tf.shape(at), num))


def _numbers(encoded: Any, at: Any, num: Any) -> Any:
    """Return int32 [rows, num]: the bytes of each of string [rows] from `at`, padded with zeros."""
    at = tf.minimum(tf.maximum(at, 0), tf.strings.length(encoded))
    part = tf.strings.substr(encoded, at, tf.fill(tf.shape(at), num))
    return tf.cast(tf.io.decode_raw(part, tf.uint8, fixed_length=num), tf.int32)


def _value(numbers: Any, little: Any) -> Any:
    """Return int32 [...] from bytes [..., up to 4], little-endian where `little`."""
    places = [1 << 8 * k for k in range(numbers.shape[-1])]
    big_endian = tf.reduce_sum(numbers * places[::-1], -1)
    return big_endian if little is False else tf.where(little, tf.reduce_sum(numbers * places, -1), big_endian)


def _on_white(pixels: Any) -> Any:
    """Composite int32 RGBA on white, to uint8 RGB."""
    shade = (255 - pixels[..., :3]) * pixels[..., 3:]
    return tf.cast(255 - (shade + 127) // 255, tf.uint8)


@_apart
def _by_pillow(encoded: Any) -> Any:
    """Decode what TensorFlow does not decode well: an animated WebP crashes the process with TensorFlow 2.21.

    Of a GIF it would decode all frames, a few megabytes to many gigabytes; of a BMP with a palette, the indices.
    """

    def decode(content: Any) -> NDArray[np.uint8]:
        content = content if isinstance(content, bytes) else content.item()  # an array when called eagerly
        try:
            return rgb(content)
        except Exception as error:
            raise ValueError(f"it is damaged: {error}") from error

    return tf.numpy_function(decode, [encoded], tf.uint8, stateful=False)
