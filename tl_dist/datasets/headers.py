"""What is wrong with an encoded image, as far as its first and last bytes tell: nothing is decoded.

Formats: PNG (ISO 15948), JPEG (ITU T.81), GIF89a, BMP, WebP (RFC 9649).
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from tl_dist.datasets import gif
from tl_dist.datasets.gif import CutOff
from tl_dist.datasets.handles import MACHINE_FAULTS, machine_refusal
from tl_dist.datasets.location import Location
from tl_dist.files import limits
from tl_dist.files.atomic import reason

_HEAD_BYTES = 4096
_TAIL_BYTES = 32
_CHUNK_BYTES = 1 << 20
_FILL = re.compile(b"\xff+")
_NO_SIZE = frozenset({0xD8, 0x01, *range(0xD0, 0xD8)})  # JPEG markers without a segment
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class Fault(NamedTuple):
    """What is wrong, and at which byte of the file."""

    offset: int
    reason: str


def fault(location: Location) -> Fault | None:
    """Why the image cannot be decoded; None for one that may be whole. Never raises for what a file holds.

    Refuses (74) where the machine fails, which says nothing about the image.
    """
    try:
        # O_NONBLOCK: opening a named pipe would wait for its writer.
        fd = os.open(location.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return _unreadable(location, error)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return Fault(location.offset, "is no regular file")
        length = status.st_size - location.offset if location.length is None else location.length
        if location.offset + length > status.st_size:
            return Fault(
                status.st_size, f"the file ends {location.offset + length - status.st_size} bytes early"
            )
        return _fault(fd, location.offset, length)
    except OSError as error:
        return _unreadable(location, error)
    finally:
        os.close(fd)


def _unreadable(location: Location, error: OSError) -> Fault:
    if error.errno in MACHINE_FAULTS:
        raise machine_refusal(str(location.path), reason(error)) from error
    return Fault(location.offset, f"cannot be read: {error.strerror}")


def _fault(fd: int, offset: int, length: int) -> Fault | None:
    if length == 0:
        return Fault(offset, "is empty")
    if length > limits.ENCODED_IMAGE:
        return Fault(offset, f"is larger than {limits.ENCODED_IMAGE:,} bytes")
    head = os.pread(fd, min(length, _HEAD_BYTES), offset)
    try:
        try:
            kind, width, height = dimensions(head)
        except CutOff:  # a long EXIF block or colour profile comes first
            head = os.pread(fd, min(length, limits.IMAGE_HEADER), offset)
            kind, width, height = dimensions(head)
        if width < 1 or height < 1:
            return Fault(offset, f"{kind} of {width} x {height} pixels")
        if width * height > limits.IMAGE_PIXELS:
            return Fault(offset, f"{kind} of {width} x {height} pixels: more than {limits.IMAGE_PIXELS:,}")
        tail = os.pread(fd, min(length, _TAIL_BYTES), offset + max(0, length - _TAIL_BYTES))
        if _ends(kind, head, tail, length) or _ends_earlier(kind, fd, offset, length):
            return None
    except CutOff as error:
        if length > limits.IMAGE_HEADER:
            return Fault(offset, f"its header has more than {limits.IMAGE_HEADER:,} bytes")
        return Fault(offset + length, str(error))
    except ValueError as error:
        return Fault(offset, str(error))
    return Fault(offset + length, f"{kind} is cut off: its end is missing")


def dimensions(head: bytes) -> tuple[str, int, int]:
    """(format, width, height) from the first bytes; ValueError where they are those of no image.

    What comes before the pixels is bounded: Pillow and others take time and memory for each piece of it. Of a GIF it
    is the larger of canvas and first frame.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG", *_png_size(head)
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG", *_jpeg_frame(head)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF", *_gif_size(head)
    if head.startswith(b"BM"):
        width, height = _unpack("<ii", head, 18)
        return "BMP", width, abs(height)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP", *_webp_canvas(head)
    raise ValueError(f"is no image: it begins with {head[:8]!r}")


def _png_size(head: bytes) -> tuple[int, int]:
    if head[12:16] != b"IHDR":
        raise ValueError("PNG without a header chunk") if len(head) >= 16 else CutOff
    at = 8
    for _ in range(limits.IMAGE_SEGMENTS):
        size, kind = _unpack(">I4s", head, at)
        if kind == b"IDAT":
            return _pair(">II", head, 16)
        at += 12 + size
    raise ValueError(f"PNG has more than {limits.IMAGE_SEGMENTS:,} chunks before its pixels")


def _gif_size(head: bytes) -> tuple[int, int]:
    _, *frame = gif.first_frame(head, limits.IMAGE_SEGMENTS)
    return max(_pair("<HH", head, 6), (frame[0], frame[1]), key=lambda size: size[0] * size[1])


def _jpeg_frame(head: bytes) -> tuple[int, int]:
    for at, marker in _jpeg_segments(head):
        if marker in _FRAMES:
            height, width = _unpack(">HH", head, at + 5)
            return width, height
        if marker in (0xDA, 0xD9):
            raise ValueError("JPEG without a frame header")
    raise CutOff


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(place, marker) of each segment up to the first scan, or as far as `data` goes."""
    at = 0
    for _ in range(limits.IMAGE_SEGMENTS):
        if at + 4 > len(data):
            return
        if data[at] != 0xFF:
            raise ValueError(f"JPEG has no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes
            at = _FILL.match(data, at).end() - 1  # type: ignore[union-attr]
            continue
        yield at, marker
        if marker in (0xDA, 0xD9):
            return
        at += 2 if marker in _NO_SIZE else 2 + struct.unpack_from(">H", data, at + 2)[0]
    raise ValueError(f"JPEG has more than {limits.IMAGE_SEGMENTS:,} segments before its pixels")


def _webp_canvas(head: bytes) -> tuple[int, int]:
    if head[12:16] == b"VP8X":
        width, _, height, _ = (int.from_bytes(head[k : k + 3], "little") for k in (24, 0, 27, 0))
        return width + 1, height + 1
    if head[12:16] == b"VP8L":
        (bits,) = _unpack("<I", head, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = _unpack("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF


def _pair(form: str, data: bytes, at: int) -> tuple[int, int]:
    first, second = _unpack(form, data, at)
    return first, second


def _unpack(form: str, data: bytes, at: int) -> tuple[Any, ...]:
    try:
        return struct.unpack_from(form, data, at)
    except struct.error:
        raise CutOff from None


def _ends(kind: str, head: bytes, tail: bytes, length: int) -> bool:
    """Whether the last bytes are those of a whole image of this kind."""
    match kind:
        case "JPEG":
            return tail.endswith(b"\xff\xd9")
        case "PNG":
            return tail.endswith(b"IEND\xaeB`\x82")
        case "GIF":
            return tail.rstrip(b"\0").endswith(b"\x3b")
        case "WebP":
            return length >= 8 + _unpack("<I", head, 4)[0]
    return length >= _bmp_bytes(head)


def _ends_earlier(kind: str, fd: int, offset: int, length: int) -> bool:
    """Whether something was appended to a whole image, as cameras and editors do."""
    if kind == "JPEG":
        head = os.pread(fd, min(length, limits.IMAGE_HEADER), offset)
        scan = next((at for at, marker in _jpeg_segments(head) if marker == 0xDA), length)
        # In a scan every 0xFF of the data is followed by 0x00, so this is no chance.
        return _holds(fd, b"\xff\xd9", offset + scan, offset + length)
    return kind == "PNG" and _holds(fd, b"IEND\xaeB`\x82", offset, offset + length)


def _holds(fd: int, wanted: bytes, begin: int, end: int) -> bool:
    """Whether these bytes are somewhere between two places of a file."""
    before = b""
    for at in range(begin, end, _CHUNK_BYTES):
        chunk = before + os.pread(fd, min(_CHUNK_BYTES, end - at), at)
        if wanted in chunk:
            return True
        before = chunk[-len(wanted) + 1 :]
    return False


def _bmp_bytes(head: bytes) -> int:
    """Bytes that an uncompressed BMP must have."""
    begin, _, width, height, _, bits, compression = _unpack("<IIiiHHI", head, 10)
    rows = abs(height) * ((width * bits + 31) // 32 * 4)
    return begin + (rows if compression in (0, 3) else 0)
