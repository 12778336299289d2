"""Files that are named as images and cannot be decoded, each damaged in a way that is met in practice."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from sklearn.datasets import load_sample_image


def photograph(kind: str, size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    """A photograph as a file of the format `kind`."""
    file = io.BytesIO()
    image = Image.fromarray(load_sample_image("flower.jpg")).resize(size)
    (image.quantize(64) if kind == "GIF" else image).save(file, kind, **options)
    return file.getvalue()


def huge_png() -> bytes:
    """60,000 x 60,000 pixels by its header: 10.8 GB in memory, a hundred bytes on disk."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
    ]
    chunks.append((b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def wrong_checksum() -> bytes:
    """A PNG whose header and end are whole: only decoding finds the damage."""
    data = bytearray(photograph("PNG"))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


# what -> (suffix, content, the reason that a look at the header gives)
BY_HEADER: Mapping[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": (".jpg", lambda: b"", "is empty"),
    "cut off": (".jpg", lambda: photograph("JPEG")[:-700], "JPEG is cut off"),
    "without its last byte": (".jpg", lambda: photograph("JPEG")[:-1], "JPEG is cut off"),
    "first bytes only": (".jpg", lambda: photograph("JPEG")[:30], "is cut off in its header"),
    "text": (".jpg", lambda: b"<html><body>404</body></html>", "is no image: it begins with b'<html><b'"),
    "huge": (".png", huge_png, "PNG of 60000 x 60000 pixels"),
    "png cut off": (".png", lambda: photograph("PNG")[:-300], "PNG is cut off"),
    "gif cut off": (".gif", lambda: photograph("GIF")[:-300], "GIF is cut off"),
    "bmp cut off": (".bmp", lambda: photograph("BMP")[:-300], "BMP is cut off"),
    "webp cut off": (".webp", lambda: photograph("WEBP")[:-300], "WebP is cut off"),
}


def damage(file: Path, kind: str) -> None:
    """Put a damaged file in the place of `file`, whatever its suffix."""
    file.write_bytes(BY_HEADER[kind][1]() if kind in BY_HEADER else wrong_checksum())
