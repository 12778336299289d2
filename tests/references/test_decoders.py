"""Every kind of image becomes what Pillow and OpenCV show of it, by each decoder of ours and in the same pixels."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_image

from tests.image_kinds import KINDS, deep, is_lossy, jpeg, seen
from tests.image_kinds import png as png_of
from tl_dist.datasets.decoding import decode_rgb, jpeg_orientations
from tl_dist.datasets.preprocess import jpeg_orientation, rgb


def photograph() -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg")).resize((50, 37))


def saved(convert: Callable[[Image.Image], Image.Image], kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    convert(photograph()).save(target, kind, **options)
    return target.getvalue()


def half_transparent(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(128)
    return image


def png(depth: int, colour: int, channels: int, palette: bytes = b"") -> bytes:
    """Random samples of any depth, which Pillow does not write: PNG by ISO 15948, without filters."""
    height, width = 19, 26
    samples = np.random.default_rng(depth).integers(0, 2**depth, (height, width * channels))
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        bits = (samples[..., None] >> np.arange(depth)[::-1]) & 1
        rows = [np.packbits(row.astype(np.uint8)).tobytes() for row in bits.reshape(height, -1)]

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    plte = chunk(b"PLTE", palette) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + plte + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def colours(number: int) -> bytes:
    return np.random.default_rng(number).integers(0, 256, 3 * number, dtype=np.uint8).tobytes()


def two_frames(kind: str, convert: Callable[[Image.Image], Image.Image]) -> bytes:
    black = convert(Image.new("RGB", (50, 37)))
    return saved(convert, kind, save_all=True, append_images=[black], **({"lossless": True} if kind == "WEBP" else {}))


RGB, GREY = lambda p: p, lambda p: p.convert("L")
PALETTE = lambda p: p.quantize(64)  # noqa: E731

# name -> (content, largest difference)
CASES: dict[str, tuple[Callable[[], bytes], int]] = {
    "png": (lambda: saved(RGB, "PNG"), 0),
    "png interlaced palette": (lambda: saved(PALETTE, "PNG"), 0),
    "png alpha": (lambda: saved(half_transparent, "PNG"), 0),
    **{f"png grey {bits} bit": (lambda bits=bits: png(bits, 0, 1), 0) for bits in (1, 2, 4, 8, 16)},
    **{
        f"png palette {bits} bit": (lambda bits=bits: png(bits, 3, 1, colours(2**bits)), 0)
        for bits in (1, 2, 4, 8)
    },
    **{f"png RGB {bits} bit": (lambda bits=bits: png(bits, 2, 3), 0) for bits in (8, 16)},
    **{f"png grey and alpha {bits} bit": (lambda bits=bits: png(bits, 4, 2), 0) for bits in (8, 16)},
    **{f"png RGB and alpha {bits} bit": (lambda bits=bits: png(bits, 6, 4), 0) for bits in (8, 16)},
    "jpeg": (lambda: saved(RGB, "JPEG", quality=95, subsampling=0), 2),
    "jpeg 4:2:0": (lambda: saved(RGB, "JPEG", quality=90, subsampling=2), 2),
    "jpeg progressive": (lambda: saved(RGB, "JPEG", quality=95, progressive=True), 2),
    "jpeg grey": (lambda: saved(GREY, "JPEG", quality=95), 2),
    "jpeg cmyk": (lambda: saved(lambda p: p.convert("CMYK"), "JPEG", quality=95), 2),
    "bmp": (lambda: saved(RGB, "BMP"), 0),
    "bmp grey": (lambda: saved(GREY, "BMP"), 0),
    "bmp palette": (lambda: saved(PALETTE, "BMP"), 0),
    "bmp alpha": (lambda: saved(half_transparent, "BMP"), 0),
    "gif": (lambda: saved(PALETTE, "GIF"), 0),
    "gif of two frames": (lambda: two_frames("GIF", PALETTE), 0),
    "webp lossless": (lambda: saved(RGB, "WEBP", lossless=True), 0),
    "webp lossy": (lambda: saved(RGB, "WEBP", quality=95), 0),
    "webp alpha": (lambda: saved(half_transparent, "WEBP", lossless=True, exact=True), 0),
    "webp of two frames": (lambda: two_frames("WEBP", RGB), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_depth_and_palette_is_what_is_seen_of_it(name: str) -> None:
    make, most = CASES[name]
    expected = seen(make())
    for ours in (decode_rgb(tf.constant(make())).numpy(), rgb(make())):
        assert ours.shape[2] == 3 and np.abs(ours - expected).max() <= most


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_image_is_what_is_seen_of_it(name: str) -> None:
    content = KINDS[name]()
    expected, most = seen(content), 2 if is_lossy(name) else 0
    assert expected.std() > 20
    for ours in (decode_rgb(tf.constant(content)).numpy(), rgb(content)):
        assert ours.dtype == np.uint8 and ours.shape == expected.shape
        assert np.abs(ours - expected).max() <= most


def test_a_clear_grey_of_fewer_bits_is_found() -> None:
    """Which Pillow compares with pixels that it has scaled."""
    samples = deep(1) >> 14
    content = png_of(samples, 2, 0, (b"tRNS", b"\0\2"))
    expected = np.repeat(np.where(samples == 2, 255, 85 * samples), 3, axis=2)
    np.testing.assert_array_equal(rgb(content), expected)
    np.testing.assert_array_equal(decode_rgb(tf.constant(content)), expected)


def test_the_hidden_colour_of_what_is_transparent_is_never_seen() -> None:
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        image = Image.new("RGBA", (9, 7), (200, 10, 30, 0))
        image.putpixel((2, 3), (200, 10, 30, 255))
        target = io.BytesIO()
        image.save(target, kind, **options)
        for ours in (decode_rgb(tf.constant(target.getvalue())).numpy(), rgb(target.getvalue())):
            assert ours[3, 2].tolist() == [200, 10, 30] and (ours == 255).all(axis=2).sum() == 62


def without_jfif(content: bytes) -> bytes:
    """A JPEG whose EXIF data come first, as their standard has it."""
    return content[:2] + content[20:]


def spoilt(content: bytes, number: int) -> bytes:
    """An image whose EXIF data, or what is around them, were changed in a few places."""
    random = np.random.default_rng(number)
    data, at = bytearray(content), content.index(b"Exif") + 6
    for place in random.integers(at - 12, at + 26, random.integers(1, 4)):
        data[place] = random.choice([0, 1, 2, 3, 5, 8, 9, 0x4D, 0x49, 0x7F, 0x80, 0xFF])
    return bytes(data[: len(data) - random.choice([0, 0, len(data) - at - random.integers(0, 30)])])


def test_exif_data_that_lie_are_understood_alike_or_not_at_all() -> None:
    """Offsets beyond the end, numbers that are none, cut off anywhere: by TensorFlow as by Python."""
    whole = jpeg(6), jpeg(6, "<"), without_jfif(jpeg(6))
    spoilt_ones = [spoilt(content, k) for content in whole for k in range(300)]
    expected = [jpeg_orientation(content) for content in spoilt_ones]
    assert len(set(expected)) > 2 and 300 < expected.count(1) < 850
    found = tf.function(jpeg_orientations, autograph=False)(tf.constant([*whole, *spoilt_ones]))
    assert found.numpy().tolist() == [6, 6, 6, *expected]
