"""Pixels from encoded images, inside tf.data: as `preprocess.rgb` makes them, by TensorFlow where it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets.gif import first_frame_alone

VERSION = 2
"""of the rule by which an image becomes pixels, in the identity of every run. 1: as files have them, alpha dropped, not
turned, of 16 bits the high byte; 2: as a viewer shows them"""
JPEG_OPTIONS = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
"""of every JPEG decoder: as Pillow and OpenCV have it. TensorFlow's default is up to 12 levels off, and no faster."""

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_SEGMENTS = 10_000


def decode_rgb(encoded: Any, decoding: int = VERSION) -> Any:
    """uint8 [height, width, 3] from the bytes of a PNG, JPEG, GIF, BMP, WebP or TIFF, told apart by their content.

    By this version of the rule, see `preprocess.rgb`. A damaged image is an InvalidArgumentError when the graph runs.
    """
    import tensorflow as tf

    def of_gif() -> Any:
        return _decode_gif(encoded) if decoding == 1 else _by_pillow(encoded, decoding)

    head = tf.strings.substr(encoded, 0, 12)
    begin = tf.strings.substr(head, 0, 4)
    image = tf.case(
        [
            (tf.strings.substr(head, 0, 3) == _JPEG, lambda: decode_jpeg(encoded, decoding)),
            (tf.strings.substr(head, 0, 2) == b"BM", _apart(lambda: _decode_bmp(encoded))),
            (begin == b"GIF8", _apart(of_gif)),
            (
                tf.strings.regex_full_match(head, r"RIFF\C{4}WEBP")
                | (begin == b"II*\0")
                | (begin == b"MM\0*"),
                _apart(lambda: _by_pillow(encoded, decoding)),
            ),
        ],
        default=lambda: decode_png(encoded, decoding),
    )
    return tf.ensure_shape(image, [None, None, 3])


def by_pillow(kind: str, decoding: int) -> bool:
    """Whether `decode_rgb` leaves images of this kind of header to `preprocess.rgb`."""
    return kind in ("WebP", "TIFF") or (kind == "GIF" and decoding != 1)


def decode_jpeg(encoded: Any, decoding: int) -> Any:
    """uint8 [height, width, 3] of a JPEG; of what TensorFlow Serving knows as well."""
    import tensorflow as tf

    image = tf.io.decode_jpeg(encoded, **JPEG_OPTIONS)
    return image if decoding == 1 else turned(image, jpeg_orientations(encoded[None])[0])


def decode_png(encoded: Any, decoding: int) -> Any:
    """The same of a PNG. Of bytes that are of no image the error says so."""
    import tensorflow as tf

    def plain() -> Any:
        return tf.io.decode_png(encoded, channels=3)

    if decoding == 1:
        return plain()
    bits, colour = tf.unstack(_numbers(encoded[None], tf.constant([24]), 2)[0])
    # Most have neither 16 bits nor alpha, and nothing before their pixels.
    is_plain = (bits <= 8) & (colour < 4) & (_text(encoded, 37, 4) == b"IDAT")
    is_png = tf.strings.substr(encoded, 0, 8) == _PNG
    return tf.cond(is_png & ~is_plain, _apart(lambda: _any_png(encoded, bits, colour, plain)), plain)


def _any_png(encoded: Any, bits: Any, colour: Any, plain: Callable[[], Any]) -> Any:
    import tensorflow as tf

    def with_alpha() -> Any:
        return _on_white(tf.cast(tf.io.decode_png(encoded, channels=4), tf.int32))

    def of_16_bits() -> Any:
        deep = tf.io.decode_png(encoded, channels=4, dtype=tf.uint16)
        return _on_white((tf.cast(deep, tf.int32) + 128) // 257)

    transparent, begin, size = _png_chunks(encoded)
    image = tf.case([(bits == 16, of_16_bits), (transparent | (colour >= 4), with_alpha)], default=plain)
    return turned(image, _orientations(encoded[None], begin[None], size[None])[0])


def turned(image: Any, orientation: Any) -> Any:
    """[height, width, channels] as it is to be shown, by the orientation 1 to 8 of its EXIF data, a scalar int32."""
    import tensorflow as tf

    def across() -> Any:
        # By places: of each graph that transposes bytes oneDNN says, as an error, that it leaves that to Eigen.
        height, width, channels = tf.unstack(tf.shape(image))
        places = tf.range(width)[:, None] + tf.range(height) * width
        return tf.gather(tf.reshape(image, [-1, channels]), places)

    def moved() -> Any:
        upright = tf.cond(orientation >= 5, across, lambda: image)
        return tf.raw_ops.Reverse(tensor=upright, dims=tf.concat([_flips(orientation), [False]], 0))

    return tf.cond(orientation > 1, _apart(moved), lambda: image)


def stored_boxes(boxes: Any, extents: Any, orientations: Any) -> Any:
    """Where in the files the boxes int32 [rows, (y, x, height, width)] of turned images of these extents lie."""
    import tensorflow as tf

    begin, size = boxes[:, :2], boxes[:, 2:]
    begin = tf.where(_flips(orientations), extents - begin - size, begin)
    across = (orientations >= 5)[:, None]
    return tf.where(across, tf.concat([begin[:, ::-1], size[:, ::-1]], 1), tf.concat([begin, size], 1))


def _flips(orientations: Any) -> Any:
    """bool [..., 2]: whether rows, and whether columns, are shown in the opposite order, once they are upright."""
    import tensorflow as tf

    none, columns, both, rows = (False, False), (False, True), (True, True), (True, False)
    table = tf.constant([none, none, columns, both, rows, none, columns, both, rows])
    return tf.gather(table, orientations)


def jpeg_orientations(encoded: Any) -> Any:
    """int32 [rows] from 1 to 8: `preprocess.orientation` of each of string [rows] that is a JPEG, 1 for the others."""
    import tensorflow as tf

    def is_exif(head: Any) -> Any:
        begins = (head[:, 0] == 0xFF) & (head[:, 1] == 0xE1)
        return begins & tf.reduce_all(head[:, 4:] == list(b"Exif\0\0"), 1)

    def goes_on(at: Any, head: Any) -> Any:
        others = (head[:, 0] == 0xFF) & ((head[:, 1] // 16 == 0xE) | (head[:, 1] == 0xFE))
        return others & ~is_exif(head)

    def after(at: Any, head: Any) -> Any:
        at = tf.where(goes_on(at, head), at + 2 + 256 * head[:, 2] + head[:, 3], at)
        return at, _numbers(encoded, at, 10)

    def looked_for() -> Any:
        is_jpeg = tf.strings.substr(encoded, 0, 3) == _JPEG
        at = tf.where(is_jpeg, 2, tf.strings.length(encoded))
        at, head = tf.while_loop(
            lambda at, head: tf.reduce_any(goes_on(at, head)),
            after,
            (at, _numbers(encoded, at, 10)),
            maximum_iterations=_SEGMENTS,
            parallel_iterations=1,
        )
        size = tf.where(is_exif(head), 256 * head[:, 2] + head[:, 3] - 8, 0)
        return _orientations(encoded, at + 10, size)

    # Most have the segment of JFIF, and then their tables.
    is_bare = (tf.strings.substr(encoded, 0, 6) == b"\xff\xd8\xff\xe0\0\x10") & (
        _text(encoded, 20, 2) == b"\xff\xdb"
    )
    return tf.cond(tf.reduce_all(is_bare), lambda: tf.ones(tf.shape(encoded), tf.int32), _apart(looked_for))


def _png_chunks(encoded: Any) -> tuple[Any, Any, Any]:
    """Whether a chunk before the pixels makes some of them transparent, and place and size of EXIF data before them."""
    import tensorflow as tf

    total = tf.strings.length(encoded)

    def goes_on(at: Any, *found: Any) -> Any:
        return (at < total) & (_text(encoded, at + 4, 4) != b"IDAT")

    def after(at: Any, transparent: Any, begin: Any, length: Any) -> tuple[Any, ...]:
        size = _value(_numbers(encoded[None], at[None], 4), False)[0]  # below 0 from 2^31 on
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
    found = tf.while_loop(goes_on, after, start, maximum_iterations=_SEGMENTS, parallel_iterations=1)
    return found[1:]


def _orientations(encoded: Any, begin: Any, size: Any) -> Any:
    """int32 [rows]: what the first directory of the EXIF data says that lies in each of string [rows]."""
    import tensorflow as tf

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
        right = tf.reduce_any(ours, 1) & (kind == 3) & (number == 1) & (value >= 1) & (value <= 8)
        return tf.where(known & right, value, 1)

    return tf.cond(tf.reduce_any(size > 0), read, lambda: tf.ones_like(size))


def _apart(branch: Callable[[], Any]) -> Callable[[], Any]:
    """The branch of a condition as a call in the graph: inlined, each of its nodes costs time where it is not taken."""
    import tensorflow as tf

    if tf.executing_eagerly():
        return branch
    return tf.function(branch, experimental_attributes={"_noinline": True}, autograph=False)


def _text(encoded: Any, at: Any, num: int) -> Any:
    """Up to so many bytes from a place on; a place outside has none."""
    import tensorflow as tf

    at = tf.minimum(tf.maximum(at, 0), tf.strings.length(encoded))
    return tf.strings.substr(encoded, at, tf.fill(tf.shape(at), num))


def _numbers(encoded: Any, at: Any, num: Any) -> Any:
    """int32 [rows, num]: the bytes from a place in each of string [rows] on, with zeros behind its end."""
    import tensorflow as tf

    at = tf.minimum(tf.maximum(at, 0), tf.strings.length(encoded))
    part = tf.strings.substr(encoded, at, tf.fill(tf.shape(at), num))
    return tf.cast(tf.io.decode_raw(part, tf.uint8, fixed_length=num), tf.int32)


def _value(numbers: Any, little: Any) -> Any:
    """int32 [...] of bytes [..., up to 4], which may be `little` endian."""
    import tensorflow as tf

    places = [1 << 8 * k for k in range(numbers.shape[-1])]
    big_endian = tf.reduce_sum(numbers * places[::-1], -1)
    return (
        big_endian if little is False else tf.where(little, tf.reduce_sum(numbers * places, -1), big_endian)
    )


def _on_white(pixels: Any) -> Any:
    """uint8 RGB from int32 RGBA, in front of white."""
    import tensorflow as tf

    shade = (255 - pixels[..., :3]) * pixels[..., 3:]
    return tf.cast(255 - (shade + 127) // 255, tf.uint8)


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


def _by_pillow(encoded: Any, decoding: int) -> Any:
    """What TensorFlow cannot decode, or not as it should: an animated WebP ends a process with TensorFlow 2.21."""
    import tensorflow as tf

    def decode(content: Any) -> NDArray[np.uint8]:
        from tl_dist.datasets.preprocess import rgb

        content = content if isinstance(content, bytes) else content.item()  # an array when called eagerly
        try:
            return rgb(content, decoding)
        except Exception as error:
            raise ValueError(f"it is damaged: {error}") from error

    return tf.numpy_function(decode, [encoded], tf.uint8, stateful=False)
