"""Image files of every kind that people have, and what is seen of each, found by Pillow and OpenCV in a plain way."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageChops, ImageOps
from sklearn.datasets import load_sample_image

WIDTH, HEIGHT = 50, 36


def photograph(mode: str = "RGB") -> Image.Image:
    """Wider than high, and nowhere like its mirror image."""
    return Image.fromarray(load_sample_image("flower.jpg")).resize((WIDTH, HEIGHT)).convert(mode)


def fading() -> Image.Image:
    """Opaque on the left and clear on the right, where another colour is hidden."""
    image = photograph("RGBA")
    alpha = np.broadcast_to(np.linspace(255, 0, WIDTH).round().astype(np.uint8), (HEIGHT, WIDTH))
    image.putalpha(Image.fromarray(alpha))
    return image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file."""
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def exif(orientation: int, order: str = ">") -> bytes:
    """EXIF data that say nothing else; TIFF 6.0."""
    begin = b"MM\0*" if order == ">" else b"II*\0"
    return begin + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def jpeg(orientation: int = 1, order: str = ">", mode: str = "RGB", **options: Any) -> bytes:
    """Of the best quality, with EXIF data behind the segment of JFIF, as most cameras and editors put them."""
    return saved(
        photograph(mode),
        "JPEG",
        quality=98,
        subsampling=0,
        exif=b"Exif\0\0" + exif(orientation, order),
        **options,
    )


def deep(channels: int) -> np.ndarray:
    """uint16 [height, width, channels] whose low bytes matter."""
    return np.random.default_rng(channels).integers(0, 1 << 16, (HEIGHT, WIDTH, channels), dtype=np.uint16)


def png(samples: np.ndarray, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Samples [height, width, channels] of any depth, which Pillow does not write: ISO 15948, without filters."""
    height, width, _ = samples.shape
    rows = samples.reshape(height, -1)
    if bits >= 8:
        lines = [row.astype(f">u{bits // 8}").tobytes() for row in rows]
    else:
        shifts = np.arange(bits)[::-1]
        lines = [np.packbits(((row[:, None] >> shifts) & 1).astype(np.uint8)).tobytes() for row in rows]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*c) for c in chunks) + pixels + chunk(b"IEND", b"")


def clear(samples: np.ndarray) -> tuple[bytes, bytes]:
    """The chunk that makes the colour of one pixel transparent, wherever it is."""
    return b"tRNS", samples[9, 7].astype(">u2").tobytes()


def ycck() -> bytes:
    """Adobe's other JPEG of four channels: the marker says that three of them are to be converted first."""
    data = jpeg(mode="CMYK")
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    return data[:at] + b"\2" + data[at + 1 :]


def without_adobe() -> bytes:
    """A CMYK JPEG whose numbers are no negatives, since no marker says that Adobe wrote it."""
    data = saved(ImageChops.invert(photograph("CMYK")), "JPEG", quality=98)
    at = data.index(b"Adobe") - 4
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def transparent_palette() -> Image.Image:
    """Eight colours, of which the first two are clear and half clear."""
    image = photograph().quantize(8)
    image.info["transparency"] = bytes([0, 128, 255, 255, 255, 255, 255, 255])
    return image


def frames(kind: str, image: Image.Image, **options: Any) -> bytes:
    """This image, and a second one that is black."""
    return saved(image, kind, save_all=True, append_images=[Image.new(image.mode, image.size)], **options)


def tiff(samples: np.ndarray) -> bytes:
    """Written by OpenCV."""
    done, data = cv2.imencode(".tiff", samples if samples.shape[2] == 1 else samples[..., ::-1])
    assert done
    return bytes(data)


PLAIN: Mapping[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(photograph(), "JPEG", quality=98, subsampling=0),
    "jpeg 4:2:0": lambda: saved(photograph(), "JPEG", quality=90, subsampling=2),
    "jpeg with exif, upright": jpeg,
    "jpeg progressive": lambda: saved(photograph(), "JPEG", quality=98, progressive=True),
    "jpeg grey": lambda: saved(photograph("L"), "JPEG", quality=98),
    "jpeg cmyk": lambda: jpeg(mode="CMYK"),
    "jpeg ycck": ycck,
    "jpeg cmyk without adobe": without_adobe,
    "png": lambda: saved(photograph(), "PNG"),
    "png grey": lambda: saved(photograph("L"), "PNG"),
    "png 1 bit": lambda: saved(photograph("1"), "PNG"),
    "png palette": lambda: saved(photograph().quantize(64), "PNG"),
    "apng": lambda: frames("PNG", photograph()),
    "bmp": lambda: saved(photograph(), "BMP"),
    "bmp 1 bit": lambda: saved(photograph("1").convert("L"), "BMP"),
    "gif": lambda: saved(photograph().quantize(64), "GIF"),
    "gif of two frames": lambda: frames("GIF", photograph().quantize(64)),
    "webp": lambda: saved(photograph(), "WEBP", quality=95),
    "webp of two frames": lambda: frames("WEBP", photograph(), lossless=True),
    "webp with exif, upright": lambda: saved(photograph(), "WEBP", lossless=True, exif=exif(1)),
}  # fmt: skip
"""Which every viewer shows in the same pixels, whatever it knows of orientation, alpha and 16 bits."""

UNUSUAL: Mapping[str, Callable[[], bytes]] = {
    **{f"jpeg orientation {k}": lambda k=k: jpeg(k) for k in range(2, 9)},
    "jpeg orientation 6, little endian": lambda: jpeg(6, "<"),
    "jpeg orientation 6, cmyk": lambda: jpeg(6, mode="CMYK"),
    "png orientation 8": lambda: saved(photograph(), "PNG", exif=exif(8)),
    "png orientation 5, alpha": lambda: saved(fading(), "PNG", exif=exif(5)),
    "webp orientation 6": lambda: saved(photograph(), "WEBP", lossless=True, exif=exif(6)),
    "png alpha": lambda: saved(fading(), "PNG"),
    "png grey and alpha": lambda: saved(fading().convert("LA"), "PNG"),
    "png palette with alpha": lambda: saved(transparent_palette(), "PNG"),
    "png with a clear colour": lambda: png(np.asarray(photograph()), 8, 2, clear(np.asarray(photograph()))),
    "apng alpha": lambda: frames("PNG", fading()),
    "gif with a clear colour": lambda: saved(photograph().quantize(16), "GIF", transparency=3),
    "webp alpha": lambda: saved(fading(), "WEBP", lossless=True, exact=True),
    "png grey 16 bits": lambda: png(deep(1), 16, 0),
    "png grey and alpha 16 bits": lambda: png(deep(2), 16, 4),
    "png 16 bits": lambda: png(deep(3), 16, 2),
    "png alpha 16 bits": lambda: png(deep(4), 16, 6),
    "png grey 16 bits with a clear grey": lambda: png(deep(1), 16, 0, clear(deep(1))),
    "png 16 bits with a clear colour": lambda: png(deep(3), 16, 2, clear(deep(3))),
    "png 16 bits orientation 6": lambda: png(deep(3), 16, 2, (b"eXIf", exif(6))),
}  # fmt: skip

TIFF: Mapping[str, Callable[[], bytes]] = {
    **{
        f"tiff {how}": lambda how=how: saved(photograph(), "TIFF", compression=how)
        for how in ("raw", "tiff_lzw", "tiff_deflate", "packbits")
    },
    "tiff 1 bit": lambda: saved(photograph("1"), "TIFF", compression="group4"),
    "tiff palette": lambda: saved(photograph().quantize(64), "TIFF"),
    "tiff cmyk": lambda: saved(photograph("CMYK"), "TIFF"),
    "tiff alpha": lambda: saved(fading(), "TIFF", compression="tiff_lzw"),
    "tiff orientation 6": lambda: saved(photograph(), "TIFF", tiffinfo={274: 6}),
    "tiff orientation 7, lzw": lambda: saved(photograph(), "TIFF", tiffinfo={274: 7}, compression="tiff_lzw"),
    "tiff of two pages": lambda: frames("TIFF", photograph()),
    "tiff grey 16 bits": lambda: tiff(deep(1)),
    "tiff 16 bits": lambda: tiff(deep(3)),
    "tiff grey 16 bits, raw": lambda: saved(Image.fromarray(deep(1)[..., 0]), "TIFF"),
    "tiff grey 16 bits, orientation 6": lambda: saved(Image.fromarray(deep(1)[..., 0]), "TIFF", tiffinfo={274: 6}),
}  # fmt: skip

KINDS = {**PLAIN, **UNUSUAL, **TIFF}


def is_lossy(name: str) -> bool:
    """Whether decoders may round its pixels in different ways: by two levels at most."""
    return name.startswith("jpeg") or name == "webp" or "cmyk" in name


def seen(content: bytes) -> np.ndarray:
    """int [height, width, 3]: what is to be seen of an image on a white page."""
    image = Image.open(io.BytesIO(content))
    stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if stored is not None and stored.dtype == np.uint16:
        return _of_16_bits(stored, image)
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        cmyk = 255 - np.asarray(image).astype(float)  # Pillow always takes them for negatives
        image = Image.fromarray(((255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255).round().astype(np.uint8))
    image = ImageOps.exif_transpose(image)
    rgba = image.convert("RGBA")
    page = Image.new("RGB", rgba.size, "white")
    page.paste(rgba, mask=rgba.getchannel("A"))
    return np.asarray(page).astype(int)


def _of_16_bits(stored: np.ndarray, image: Image.Image) -> np.ndarray:
    values = (np.atleast_3d(stored) / 257).round()
    if values.shape[2] in (1, 2):
        values = np.concatenate([values[..., :1]] * 3 + [values[..., 1:]], axis=2)
    else:
        values = np.concatenate([values[..., 2::-1], values[..., 3:]], axis=2)
    key = image.info.get("transparency")
    if key is not None:
        clear = (np.atleast_3d(stored)[..., ::-1][..., -np.size(key) :] == np.asarray(key)).all(axis=2)
        values = np.concatenate([values[..., :3], np.where(clear, 0, 255)[..., None]], axis=2)
    if values.shape[2] == 4:
        alpha = values[..., 3:] / 255
        values = (values[..., :3] * alpha + 255 * (1 - alpha)).round()
    picture = Image.fromarray(values.astype(np.uint8))
    turn = image.getexif().get(274, 1)
    if turn != 1 and image.format != "TIFF":  # which OpenCV turns in any case
        data = Image.Exif()
        data[274] = turn
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(saved(picture, "PNG", exif=data))))
    return np.asarray(picture.convert("RGB")).astype(int)
