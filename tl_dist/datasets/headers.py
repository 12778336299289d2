"""What is wrong with an encoded image, as far as its first and last bytes tell: nothing is decoded.

Formats: PNG (ISO 15948), JPEG (ITU T.81), GIF89a, BMP, WebP (RFC 9649).
"""

from __future__ import annotations

import os
import stat
import struct
from typing import NamedTuple

from tl_dist.datasets.handles import MACHINE_FAULTS, machine_refusal
from tl_dist.datasets.location import Location
from tl_dist.durable import reason
from tl_dist.files import limits

_HEAD_BYTES = 4096
_TAIL_BYTES = 32
_NO_SIZE = frozenset({0xD8, 0x01, *range(0xD0, 0xD8)})  # JPEG markers without a segment
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class Fault(NamedTuple):
    """What is wrong, and at which byte of the file."""

    offset: int
    reason: str


class _CutOff(Exception):
    """The bytes end before the header does."""


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
    head = os.pread(fd, min(length, _HEAD_BYTES), offset)
    try:
        try:
            kind, width, height = dimensions(head)
        except _CutOff:
            head = os.pread(fd, length, offset)  # a long EXIF block or colour profile comes first
            kind, width, height = dimensions(head)
        if width < 1 or height < 1:
            return Fault(offset, f"{kind} of {width} x {height} pixels")
        if width * height > limits.IMAGE_PIXELS:
            return Fault(offset, f"{kind} of {width} x {height} pixels: more than {limits.IMAGE_PIXELS:,}")
        tail = os.pread(fd, min(length, _TAIL_BYTES), offset + max(0, length - _TAIL_BYTES))
        if _ends(kind, head, tail, length) or _ends_earlier(kind, os.pread(fd, length, offset)):
            return None
    except _CutOff:
        return Fault(offset + length, "is cut off in its header")
    except ValueError as error:
        return Fault(offset, str(error))
    return Fault(offset + length, f"{kind} is cut off: its end is missing")


def dimensions(head: bytes) -> tuple[str, int, int]:
    """(format, width, height) from the first bytes; ValueError where they are those of no image."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        if head[12:16] != b"IHDR":
            raise ValueError("PNG without a header chunk") if len(head) >= 16 else _CutOff
        return "PNG", *_pair(">II", head, 16)
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG", *_jpeg_frame(head)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF", *_pair("<HH", head, 6)
    if head.startswith(b"BM"):
        width, height = _unpack("<ii", head, 18)
        return "BMP", width, abs(height)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP", *_webp_canvas(head)
    raise ValueError(f"is no image: it begins with {head[:8]!r}")


def _jpeg_frame(head: bytes) -> tuple[int, int]:
    for at, marker in _jpeg_segments(head):
        if marker in _FRAMES:
            height, width = _unpack(">HH", head, at + 5)
            return width, height
        if marker in (0xDA, 0xD9):
            raise ValueError("JPEG without a frame header")
    raise _CutOff


def _jpeg_segments(data: bytes) -> list[tuple[int, int]]:
    """(place, marker) of each segment up to the first scan, or as far as `data` goes."""
    found, at = [], 0
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise ValueError(f"JPEG has no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        found.append((at, marker))
        if marker in (0xDA, 0xD9):
            break
        at += 2 if marker in _NO_SIZE else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return found


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


def _unpack(form: str, data: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, data, at)
    except struct.error:
        raise _CutOff from None


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


def _ends_earlier(kind: str, data: bytes) -> bool:
    """Whether something was appended to a whole image, as cameras and editors do."""
    if kind == "JPEG":
        scan = next((at for at, marker in _jpeg_segments(data) if marker == 0xDA), len(data))
        # In a scan every 0xFF of the data is followed by 0x00, so this is no chance.
        return data.find(b"\xff\xd9", scan) >= 0
    return kind == "PNG" and b"IEND\xaeB`\x82" in data


def _bmp_bytes(head: bytes) -> int:
    """Bytes that an uncompressed BMP must have."""
    begin, _, width, height, _, bits, compression = _unpack("<IIiiHHI", head, 10)
    rows = abs(height) * ((width * bits + 31) // 32 * 4)
    return begin + (rows if compression in (0, 3) else 0)
