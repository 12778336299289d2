"""Check encoded images by their first and last bytes, without decoding them.

Formats: PNG (ISO 15948), JPEG (ITU T.81), GIF89a, BMP, WebP (RFC 9649), TIFF 6.0.
"""

import math
import os
import stat
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from tl_dist.datasets.decoding_cost import CutOff, Read, jpeg_frame, refuse_costly_png
from tl_dist.datasets.open_files import MACHINE_FAULTS, machine_refusal
from tl_dist.datasets.store import Location
from tl_dist.files import limits
from tl_dist.files.atomic import reason

_HEAD_BYTES = 4096
_TAIL_BYTES = 32
_CHUNK_BYTES = 1 << 20
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
_UNCOMPRESSED = (0, 3, 6)  # BMP compression: BI_RGB, BI_BITFIELDS and BI_ALPHABITFIELDS

_BYTE_ORDERS: Mapping[bytes, str] = {b"II*\0": "<", b"MM\0*": ">"}  # of TIFF files, by their first bytes
_WIDTH, _HEIGHT, _STRIPS, _STRIP_ROWS, _STRIP_BYTES, _TILES, _TILE_BYTES = 256, 257, 273, 278, 279, 324, 325
_NUMBERS = {1: "B", 3: "H", 4: "I"}  # types of tags
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


class Fault(NamedTuple):
    """Describe what is wrong, and at which byte of the file."""

    offset: int
    reason: str


class Header(NamedTuple):
    """Hold the kind and size of an image, from its first bytes."""

    kind: str
    width: int
    height: int


def fault(location: Location, *, thorough: bool = True) -> Fault | None:
    """Return why an image cannot be decoded; None if it may be whole. Raises for no content of a file.

    Refuses (74) if the machine fails, which says nothing about the image. The pixels of a PNG of more than a hundred
    kilobytes are inflated, to check that they are no more than its size needs; unless `thorough`, only the beginning if
    that resembles a photograph.
    """
    try:
        # O_NONBLOCK: otherwise opening a named pipe would wait for a writer.
        fd = os.open(location.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return _unreadable(location, error)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return Fault(location.offset, "is no regular file")
        length = status.st_size - location.offset if location.length is None else location.length
        if location.offset + length > status.st_size:
            return Fault(status.st_size, f"the file ends {location.offset + length - status.st_size} bytes early")

        def read(at: int, num: int) -> bytes:
            return os.pread(fd, max(0, min(num, length - at)), location.offset + at)

        result = _check(read, location.offset, length, thorough)
        return result if isinstance(result, Fault) else None
    except OSError as error:
        return _unreadable(location, error)
    finally:
        os.close(fd)


def checked(encoded: bytes) -> Header:
    """Return the header of an image in memory; raises ValueError if it cannot be decoded or would cost too much."""
    header = _check(lambda at, num: encoded[at : at + num], 0, len(encoded), True)
    if isinstance(header, Fault):
        raise ValueError(header.reason)
    return header


def _unreadable(location: Location, error: OSError) -> Fault:
    if error.errno in MACHINE_FAULTS:
        raise machine_refusal(str(location.path), reason(error)) from error
    return Fault(location.offset, f"cannot be read: {error.strerror}")


def _check(read: Read, offset: int, length: int, thorough: bool) -> Header | Fault:
    if length == 0:
        return Fault(offset, "is empty")
    if length > limits.ENCODED_IMAGE:
        return Fault(offset, f"is larger than {limits.ENCODED_IMAGE:,} bytes")
    try:
        try:
            header, end = _parse(read(0, _HEAD_BYTES), read, length)
        except CutOff:  # a long EXIF block or colour profile comes first
            header, end = _parse(read(0, limits.IMAGE_HEADER), read, length)
        kind, width, height = header
        if width < 1 or height < 1:
            raise ValueError(f"{kind} of {width} x {height} pixels")
        if width * height > limits.IMAGE_PIXELS:
            raise ValueError(f"{kind} of {width} x {height} pixels: more than {limits.IMAGE_PIXELS:,}")
        if kind == "PNG":
            refuse_costly_png(read, length, thorough=thorough)
        is_whole = end <= length if kind not in _ENDS else _ends(read, _ENDS[kind], end, length)
    except CutOff as error:
        if length > limits.IMAGE_HEADER:
            return Fault(offset, f"its header has more than {limits.IMAGE_HEADER:,} bytes")
        return Fault(offset + length, str(error))
    except ValueError as error:
        return Fault(offset, str(error))
    return header if is_whole else Fault(offset + length, f"{kind} is cut off: its end is missing")


def _ends(read: Read, mark: bytes, begin: int, length: int) -> bool:
    """Tell if the mark is at the end, or further ahead: cameras and editors append data to JPEG and PNG files."""
    if read(max(0, length - _TAIL_BYTES), _TAIL_BYTES).rstrip(b"\0").endswith(mark):
        return True
    before = b""
    # In a scan of a JPEG every 0xFF of the data is followed by 0x00, so data cannot look like the end.
    for at in range(begin, length if len(mark) > 1 else 0, _CHUNK_BYTES):
        chunk = before + read(at, _CHUNK_BYTES)
        if mark in chunk:
            return True
        before = chunk[-len(mark) + 1 :]
    return False


def _parse(head: bytes, read: Read, length: int) -> tuple[Header, int]:
    """Parse the first bytes of an image; returns also its end, of a kind in `_ENDS` where to begin to look for that.

    Raises ValueError for no image, CutOff for too few bytes. The number of pieces before the pixels is bounded, since
    each costs Pillow and others time and memory.
    """
    if head[:4] in _BYTE_ORDERS:
        return _tiff(read, length)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(head), 0
    if head.startswith(b"\xff\xd8\xff"):
        width, height, scan = jpeg_frame(head, read)
        return Header("JPEG", width, height), scan
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _gif(head), 0
    if head.startswith(b"BM"):
        begin, size, width, height, _, bits, compression = _unpack("<IIiiHHI", head, 10)
        if size >= 40 and (compression not in _UNCOMPRESSED or bits == 16):
            raise ValueError("BMP is compressed, or of 16 bits a pixel: neither is decoded")
        rows = abs(height) * ((width * bits + 31) // 32 * 4)
        return Header("BMP", width, abs(height)), begin + (rows if compression in (0, 3) else 0)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _webp(head), 8 + _unpack("<I", head, 4)[0]
    raise ValueError(f"is no image: it begins with {head[:8]!r}")


def _png(head: bytes) -> Header:
    if head[12:16] != b"IHDR":
        raise ValueError("PNG without a header chunk") if len(head) >= 16 else CutOff
    at = 8
    for _ in range(limits.IMAGE_SEGMENTS):
        size, kind = _unpack(">I4s", head, at)
        if kind == b"IDAT":
            return Header("PNG", *_unpack(">II", head, 16))
        at += 12 + size
    raise ValueError(f"PNG has more than {limits.IMAGE_SEGMENTS:,} chunks before its pixels")


def _gif(head: bytes) -> Header:
    """Parse the blocks up to the first frame; the size is the larger of canvas and frame."""
    *canvas, flags = _unpack("<HHB", head, 6)
    at, blocks = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), 0
    while _unpack("B", head, at) == (0x21,):  # an extension
        at += 2
        while size := _unpack("B", head, at)[0]:
            at += 1 + size
            blocks += 1
            if blocks > limits.IMAGE_SEGMENTS:
                raise ValueError(f"GIF has more than {limits.IMAGE_SEGMENTS:,} blocks before its pixels")
        at += 1
    if head[at] != 0x2C:
        raise ValueError(f"GIF has no block at byte {at}")
    return Header("GIF", *max(canvas, _unpack("<4xHH", head, at + 1), key=math.prod))


def _webp(head: bytes) -> Header:
    if head[12:16] == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        return Header("WebP", width + 1, height + 1)
    if head[12:16] == b"VP8L":
        (bits,) = _unpack("<I", head, 21)
        return Header("WebP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    width, height = _unpack("<HH", head, 26)
    return Header("WebP", width & 0x3FFF, height & 0x3FFF)


def _tiff(read: Read, length: int) -> tuple[Header, int]:
    """Parse the first page of a TIFF; raises ValueError without a size, CutOff if the file ends within its directory.

    Raises ValueError as well if tags or pixels use one part of the file again and again: each use takes memory or time.
    """

    def unpacked(form: str, at: int) -> tuple[Any, ...]:
        return _unpack(order + form, read(at, struct.calcsize(order + form)), 0)

    order = _BYTE_ORDERS[read(0, 4)]
    (at,) = unpacked("I", 4)
    (count,) = unpacked("H", at)
    entries = read(at + 2, 12 * count)
    tags: dict[int, tuple[int, int, int]] = {}
    tagged = furthest = 0
    for place in range(0, 12 * count, 12):
        tag, kind, number, offset = _unpack(f"{order}HHII", entries, place)
        size = number * _BYTES.get(kind, 0)
        tags.setdefault(tag, (kind, number, offset if size > 4 else at + 10 + place))
        if size > 4:
            tagged, furthest = tagged + size, max(furthest, offset + size)
    if tagged > length:
        raise ValueError("TIFF whose tags hold more than the file") if furthest <= length else CutOff

    def values(tag: int, default: int | None = None) -> tuple[int, ...]:
        if tag not in tags and default is not None:
            return (default,)
        if tag not in tags:
            raise ValueError(f"TIFF without tag {tag} in its first directory")
        kind, number, place = tags[tag]
        if kind not in _NUMBERS or not number:
            raise ValueError(f"TIFF whose tag {tag} is no number")
        return unpacked(f"{min(number, limits.TIFF_PIECES)}{_NUMBERS[kind]}", place)

    height = values(_HEIGHT)[0]
    if _STRIPS in tags and tags[_STRIPS][1] * values(_STRIP_ROWS, height)[0] < height:
        raise ValueError("TIFF whose strips do not fill it")
    begins, lengths = (_STRIPS, _STRIP_BYTES) if _STRIPS in tags else (_TILES, _TILE_BYTES)
    if begins in tags and tags[begins][1] > limits.TIFF_PIECES:
        raise ValueError(f"TIFF has more than {limits.TIFF_PIECES:,} strips or tiles")
    pieces = list(zip(values(begins), values(lengths, 0), strict=False))
    width = values(_WIDTH)[0]
    if sum(size for _, size in pieces) > length + width * height * 8:
        raise ValueError("TIFF whose strips or tiles hold more than the file")
    return Header("TIFF", width, height), max(begin + size for begin, size in pieces)


def _unpack(form: str, data: bytes, at: int) -> tuple[Any, ...]:
    try:
        return struct.unpack_from(form, data, at)
    except struct.error:
        raise CutOff from None
