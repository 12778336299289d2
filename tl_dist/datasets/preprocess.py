"""Turn an image file into the pixels that training sees, with NumPy, Pillow and the classes.json beside this file.

from preprocess import class_names, load

images = np.stack([load("cell.png")])   # uint8 [1, size, size, 3], what every export takes
"""

import io
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageOps

_FILE = Path(__file__).with_name("classes.json")
_SETTINGS = json.loads(_FILE.read_text(encoding="utf-8")) if _FILE.exists() else {}
class_names: list[str] = _SETTINGS.get("class_names", [])

VERSION = 1
"""version of the rule by which images become pixels, part of every run's identity"""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
_SEGMENTS = 10_000
"""maximum number of segments before the pixels that are searched for EXIF data"""
_ORIENTATION, _SHORT = 0x0112, 3
_LOW_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGBA;16B": "RGBA;16L",
    "LA;16B": "RGBA",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
}
"""Pillow keeps the high byte of 16 bits a channel; read in the other byte order, that is the low byte."""


def load(file: Any, size: int = 0, crop_fraction: float | None = None, interpolation: str = "bilinear") -> np.ndarray:
    """Load uint8 RGB [size, size, 3] from a path or an open file; by default size, crop and filter are the model's."""
    encoded = Path(file).read_bytes() if isinstance(file, str | os.PathLike) else file.read()
    if not size:
        size, crop_fraction = _SETTINGS["image_size"], _SETTINGS["crop_fraction"]
        interpolation = _SETTINGS.get("interpolation", interpolation)
    return resized(rgb(encoded), size, crop_fraction, interpolation)


def rgb(encoded: bytes, at_least: tuple[int, int] | None = None) -> np.ndarray:
    """Decode the first frame or page of an image file to uint8 RGB [height, width, 3], as a viewer shows it on white.

    It is oriented by its EXIF data and composited on white; 16 bits become 8 by division by 257. With `at_least` a
    JPEG may be decoded at a smaller scale, of at least this width and height. Raises Pillow's errors if it cannot be
    decoded.
    """
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if at_least is not None:
            image.draft("RGB", at_least)
        orientation = _orientation(image, encoded)  # before a PNG has loaded what follows its pixels
        pixels = on_white(_eight_bits(image, encoded))
    return np.ascontiguousarray(turned(pixels, orientation))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Orient [height, width, ...] for display by its EXIF orientation 1 to 8, as a view."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]


def on_white(pixels: np.ndarray) -> np.ndarray:
    """Composite uint8 RGB or RGBA on white, to uint8 RGB."""
    if pixels.shape[2] == 3:
        return pixels
    shade = (255 - pixels[..., :3].astype(np.uint16)) * pixels[..., 3:] + np.uint16(128)
    return np.asarray(255 - ((shade + (shade >> 8)) >> 8), np.uint8)  # shade / 255, rounded


def _eight_bits(image: Image.Image, encoded: bytes) -> np.ndarray:
    """Return uint8 RGB or RGBA of an opened image."""
    raw = _raw_mode(image)
    if is_deep(image):
        return _scaled(_deep(image, encoded, raw), image)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are numbers of 32 bits, or have a sign: no range of them is black to white")
    if raw in ("L;2", "L;4") and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}[raw]
    return _loaded(image, "RGBA" if image.has_transparency_data else "RGB")


def is_deep(image: Any) -> bool:
    """Tell if an opened image has more than 8 bits a channel."""
    return _raw_mode(image) in _LOW_BYTES or image.mode.startswith("I;16")


def _loaded(image: Image.Image, mode: str = "") -> np.ndarray:
    """Return the pixels in this mode; a TIFF is oriented, by Pillow on loading or else here."""
    image.load()
    if image.format == "TIFF":
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for Adobe's, which are inverted
    return np.asarray(image.convert(mode) if mode else image)


def _raw_mode(image: Any) -> str:
    """Return Pillow's raw mode: the layout of the pixels in the file."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _deep(image: Any, encoded: bytes, raw: str) -> np.ndarray:
    """Return uint16 [height, width, channels] of an image of up to 16 bits a channel."""
    if image.mode.startswith("I"):
        return _loaded(image).astype(np.uint16)[..., None]
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as other:
        other.tile[:] = [tile._replace(args=_low_byte_args(raw, tile.args)) for tile in other.tile]
        low = _loaded(other)
    if raw == "LA;16B":
        grey_alpha = low.astype(np.uint16)
        return grey_alpha[..., ::2] << 8 | grey_alpha[..., 1::2]
    return _loaded(image).astype(np.uint16) << 8 | low


def _low_byte_args(raw: str, arguments: Any) -> Any:
    return (_LOW_BYTES[raw], *arguments[1:]) if isinstance(arguments, tuple) else _LOW_BYTES[raw]


def _scaled(values: np.ndarray, image: Any) -> np.ndarray:
    """Scale uint16 of 1 to 4 channels to uint8 RGB or RGBA."""
    is_tiff = image.format == "TIFF"
    top = 2 ** int(image.tag_v2[258][0]) - 1 if is_tiff else 65535
    if is_tiff and image.tag_v2.get(262) == 0:
        values = top - values  # white is 0
    key = image.info.get("transparency")
    if key is not None and values.shape[2] in (1, 3):
        opaque = (values != np.asarray(key)).any(axis=2, keepdims=True)
        values = np.concatenate([values, np.where(opaque, 65535, 0)], axis=2)
    eight = ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
    if eight.shape[2] < 3:
        eight = np.concatenate([np.repeat(eight[..., :1], 3, axis=2), eight[..., 1:]], axis=2)
    return eight


def _orientation(image: Any, encoded: bytes) -> int:
    if image.format in ("JPEG", "MPO"):
        return jpeg_orientation(encoded)
    # A TIFF is turned when it is loaded.
    block = b"" if image.format == "TIFF" else image.info.get("exif", b"")
    return exif_orientation(block.removeprefix(b"Exif\0\0"))


def jpeg_orientation(encoded: bytes) -> int:
    """Return the orientation in the first EXIF segment of a JPEG before the decoder's tables; 1 without one."""
    at = 2 if encoded.startswith(b"\xff\xd8\xff") else len(encoded)
    for _ in range(_SEGMENTS):
        head = encoded[at : at + 10]
        if len(head) < 10 or head[0] != 0xFF or not (head[1] >> 4 == 0xE or head[1] == 0xFE):
            break
        end = at + 2 + int.from_bytes(head[2:4], "big")
        if head[1] == 0xE1 and head[4:] == b"Exif\0\0":
            return exif_orientation(encoded[at + 10 : end])
        at = end
    return 1


def exif_orientation(block: bytes) -> int:
    """Return the orientation 1 to 8 in EXIF data, which are a TIFF file without pixels; 1 if missing or malformed.

    As in browsers, it is one SHORT in the first directory.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return 1
    (at,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, at) if at + 2 <= len(block) else (0,)
    for entry in range(at + 2, min(at + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, number, value = struct.unpack_from(f"{order}HHIH", block, entry)
        if tag == _ORIENTATION:
            return value if kind == _SHORT and number == 1 and 1 <= value <= 8 else 1
    return 1


def resized(image: np.ndarray, size: int, crop_fraction: float | None, interpolation: str = "bilinear") -> np.ndarray:
    """Resize to [size, size, 3], bilinear or bicubic, as `tf.image.resize(antialias=True)`.

    The image is stretched; or with `crop_fraction` its shorter side becomes size / crop_fraction and the central square
    is cropped.
    """
    extent = np.array(image.shape[:2])
    if (extent == size).all() and crop_fraction in (None, 1.0):
        return image
    if crop_fraction is None:
        whole, begin = np.array([size, size]), np.zeros(2, np.float32)
    else:
        whole = int(size / crop_fraction) * extent // extent.min()
        begin = np.rint((whole - size) / 2).astype(np.float32)
    kernel = _cubic if interpolation == "bicubic" else _triangle
    scales = (whole / extent).astype(np.float32)
    rows, columns = (_weights(int(extent[k]), size, scales[k], begin[k], kernel) for k in range(2))
    tall = np.einsum("yh,hwc->ywc", rows, image.astype(np.float32))
    square = np.einsum("xw,ywc->yxc", columns, tall)
    return np.clip(np.rint(square), 0, 255).astype(np.uint8)


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - distance)


def _cubic(distance: np.ndarray) -> np.ndarray:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


def _weights(length: int, size: int, scale: np.float32, begin: np.float32, kernel: Any) -> np.ndarray:
    """Return float32 [size, length]: the weights of input pixels in each output pixel of a line."""
    centre = (np.arange(size, dtype=np.float32) + np.float32(0.5) + begin) / scale
    width = max(np.float32(1), 1 / scale)
    distance = np.abs(np.arange(length, dtype=np.float32) + np.float32(0.5) - centre[:, None]) / width
    weights = kernel(distance)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
