"""Check encoded images by their first and last bytes, without decoding them.

Formats: PNG (ISO 15948), JPEG (ITU T.81), GIF89a, BMP, WebP (RFC 9649), TIFF 6.0. A header also has traits: what
`decoding` orients, composites on white, converts or scales.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import Any, NamedTuple

from tl_dist.datasets import gif, jpeg, png, tiff
from tl_dist.datasets.gif import CutOff
from tl_dist.datasets.open_files import MACHINE_FAULTS, machine_refusal
from tl_dist.datasets.preprocess import orientation
from tl_dist.datasets.store import Location
from tl_dist.files import limits
from tl_dist.files.atomic import reason

_HEAD_BYTES = 4096
_TAIL_BYTES = 32
_CHUNK_BYTES = 1 << 20
_UNCOMPRESSED = (0, 3, 6)  # BMP compression: BI_RGB, BI_BITFIELDS and BI_ALPHABITFIELDS

ORIENTATION, ALPHA, DEEP, CMYK, PARTIAL = "orientation", "alpha", "16 bits", "cmyk", "partial"
"""traits of images: oriented by EXIF data; perhaps transparent; more than 8 bits a channel; four-colour print; a GIF
whose first frame does not fill its canvas"""


class Fault(NamedTuple):
    """Describe what is wrong, and at which byte of the file."""

    offset: int
    reason: str


class Header(NamedTuple):
    """Hold the kind, size and traits of an image, from its first bytes."""

    kind: str
    width: int
    height: int
    traits: frozenset[str] = frozenset()

    @property
    def is_unusual(self) -> bool:
        """Tell if the first version of the decoding rule, which knew no TIFF, gives other pixels."""
        return self.kind != "TIFF" and bool(self.traits - {CMYK})


def fault(location: Location) -> Fault | None:
    """Return why an image cannot be decoded; None if it may be whole. Raises for no content of a file.

    Refuses (74) if the machine fails, which says nothing about the image.
    """
    header = look(location)
    return header if isinstance(header, Fault) else None


def look(location: Location, *, thorough: bool = True) -> Header | Fault:
    """Return the header of an image that may be whole, or why it cannot be decoded; raises as `fault` does.

    The pixels of a PNG of more than a hundred kilobytes are inflated, to check that they are no more than its size
    needs; unless `thorough`, only the beginning if that resembles a photograph.
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
            return Fault(
                status.st_size, f"the file ends {location.offset + length - status.st_size} bytes early"
            )

        def read(at: int, num: int) -> bytes:
            return os.pread(fd, max(0, min(num, length - at)), location.offset + at)

        return _look(read, location.offset, length, thorough)
    except OSError as error:
        return _unreadable(location, error)
    finally:
        os.close(fd)


def checked(encoded: bytes) -> Header:
    """Return the header of an image in memory; raises ValueError if it cannot be decoded or would cost too much."""
    header = _look(lambda at, num: encoded[at : at + num], 0, len(encoded), True)
    if isinstance(header, Fault):
        raise ValueError(header.reason)
    return header


def _unreadable(location: Location, error: OSError) -> Fault:
    if error.errno in MACHINE_FAULTS:
        raise machine_refusal(str(location.path), reason(error)) from error
    return Fault(location.offset, f"cannot be read: {error.strerror}")


def _look(read: tiff.Read, offset: int, length: int, thorough: bool) -> Header | Fault:
    if length == 0:
        return Fault(offset, "is empty")
    if length > limits.ENCODED_IMAGE:
        return Fault(offset, f"is larger than {limits.ENCODED_IMAGE:,} bytes")
    try:
        head, header, end = _begin(read, length)
        kind, _, _, traits = header
        if kind == "PNG":
            png.refuse_costly(read, length, thorough=thorough)
        if kind == "WebP" and ORIENTATION in traits and orientation(read(0, limits.IMAGE_HEADER)) == 1:
            header = header._replace(traits=traits - {ORIENTATION})  # its EXIF data come last
        if end is None:
            tail = read(max(0, length - _TAIL_BYTES), _TAIL_BYTES)
            end = (
                length if _ends(kind, head, tail, length) or _ends_earlier(kind, head, read, length) else None
            )
        if end is not None and end <= length:
            return header
    except CutOff as error:
        if length > limits.IMAGE_HEADER:
            return Fault(offset, f"its header has more than {limits.IMAGE_HEADER:,} bytes")
        return Fault(offset + length, str(error))
    except ValueError as error:
        return Fault(offset, str(error))
    return Fault(offset + length, f"{kind} is cut off: its end is missing")


def _begin(read: tiff.Read, length: int) -> tuple[bytes, Header, int | None]:
    """Return as many first bytes as the header needs, the header, and for a TIFF the end of its pixels."""
    head = read(0, _HEAD_BYTES)
    if head[:4] in tiff.ORDERS:
        header, end = _tiff(read, length)
        return head, _bounded(header), end
    try:
        return head, _of_reasonable_cost(head, read), None
    except CutOff:  # a long EXIF block or colour profile comes first
        head = read(0, limits.IMAGE_HEADER)
        return head, _of_reasonable_cost(head, read), None


def _of_reasonable_cost(head: bytes, read: tiff.Read) -> Header:
    header = _bounded(header_of(head))
    if header.kind == "JPEG":
        jpeg.refuse_costly(head, read, header.width * header.height)
    return header


def _bounded(header: Header) -> Header:
    kind, width, height, _ = header
    if width < 1 or height < 1:
        raise ValueError(f"{kind} of {width} x {height} pixels")
    if width * height > limits.IMAGE_PIXELS:
        raise ValueError(f"{kind} of {width} x {height} pixels: more than {limits.IMAGE_PIXELS:,}")
    return header


def header_of(encoded: bytes) -> Header:
    """Parse the header in the first bytes of an image, or in all of them; raises ValueError for no image.

    The number of pieces before the pixels is bounded, since each costs Pillow and others time and memory. The size of a
    GIF is the larger of canvas and first frame. A WebP with EXIF data has the trait ORIENTATION; it
    may still be upright.
    """
    if encoded[:4] in tiff.ORDERS:
        return _tiff(lambda at, num: encoded[at : at + num], len(encoded))[0]
    head = encoded[: limits.IMAGE_HEADER]
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(head)
    if head.startswith(b"\xff\xd8\xff"):
        return _jpeg(head)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _gif(head)
    if head.startswith(b"BM"):
        size, width, height, _, compression = _unpack("<IiiII", head, 14)
        if size >= 40 and compression not in _UNCOMPRESSED:
            raise ValueError("BMP is compressed, as which TensorFlow decodes none")
        return Header("BMP", width, abs(height))
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _webp(head)
    raise ValueError(f"is no image: it begins with {head[:8]!r}")


def _png(head: bytes) -> Header:
    if head[12:16] != b"IHDR":
        raise ValueError("PNG without a header chunk") if len(head) >= 16 else CutOff
    at, kinds = 8, set()
    for _ in range(limits.IMAGE_SEGMENTS):
        size, kind = _unpack(">I4s", head, at)
        if kind == b"IDAT":
            width, height, bits, colour = _unpack(">IIBB", head, 16)
            traits = {
                ORIENTATION: b"eXIf" in kinds and orientation(head) != 1,
                ALPHA: colour >= 4 or b"tRNS" in kinds,
                DEEP: bits == 16,
            }
            return Header("PNG", width, height, _names_of(traits))
        kinds.add(kind)
        at += 12 + size
    raise ValueError(f"PNG has more than {limits.IMAGE_SEGMENTS:,} chunks before its pixels")


def _gif(head: bytes) -> Header:
    frame = gif.first_frame(head, limits.IMAGE_SEGMENTS)
    canvas = _unpack("<HH", head, 6)
    width, height = max(canvas, frame.size, key=lambda size: size[0] * size[1])
    traits = {ALPHA: frame.is_transparent, PARTIAL: (0, 0, *canvas) != (*frame.corner, *frame.size)}
    return Header("GIF", width, height, _names_of(traits))


def _jpeg(head: bytes) -> Header:
    for at, marker in jpeg.segments(head):
        if marker in jpeg.FRAMES:
            height, width, channels = _unpack(">HHB", head, at + 5)
            traits = {ORIENTATION: orientation(head) != 1, CMYK: channels == 4}
            return Header("JPEG", width, height, _names_of(traits))
        if marker in (0xDA, 0xD9):
            raise ValueError("JPEG without a frame header")
    raise CutOff


def _names_of(traits: dict[str, bool]) -> frozenset[str]:
    return frozenset(name for name, has in traits.items() if has)


def _tiff(read: tiff.Read, length: int) -> tuple[Header, int]:
    """Return the header of a TIFF and the end of its pixels."""
    page = tiff.first_page(read, length)
    traits = {
        ORIENTATION: 2 <= page.orientation <= 8,
        ALPHA: page.has_alpha,
        DEEP: page.bits > 8,
        CMYK: page.is_cmyk,
    }
    return Header("TIFF", page.width, page.height, _names_of(traits)), page.end


def _webp(head: bytes) -> Header:
    if head[12:16] == b"VP8X":
        flags, width, _, height, _ = (int.from_bytes(head[k : k + 3], "little") for k in (20, 24, 0, 27, 0))
        traits = {ORIENTATION: bool(flags & 8), ALPHA: bool(flags & 16)}
        return Header("WebP", width + 1, height + 1, _names_of(traits))
    if head[12:16] == b"VP8L":
        (bits,) = _unpack("<I", head, 21)
        return Header(
            "WebP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, _names_of({ALPHA: bool(bits >> 28 & 1)})
        )
    width, height = _unpack("<HH", head, 26)
    return Header("WebP", width & 0x3FFF, height & 0x3FFF)


def _unpack(form: str, data: bytes, at: int) -> tuple[Any, ...]:
    try:
        return struct.unpack_from(form, data, at)
    except struct.error:
        raise CutOff from None


def _ends(kind: str, head: bytes, tail: bytes, length: int) -> bool:
    """Tell if the last bytes are the end of a whole image of this kind."""
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


def _ends_earlier(kind: str, head: bytes, read: tiff.Read, length: int) -> bool:
    """Tell if a whole image is followed by appended data, as cameras and editors do."""
    if kind == "JPEG":
        # In a scan every 0xFF of the data is followed by 0x00, so data cannot look like the end.
        scan = next((at for at, marker in jpeg.segments(head) if marker == 0xDA), length)
        return _holds(read, b"\xff\xd9", scan, length)
    return kind == "PNG" and _holds(read, b"IEND\xaeB`\x82", 0, length)


def _holds(read: tiff.Read, wanted: bytes, begin: int, end: int) -> bool:
    """Tell if `wanted` occurs between two offsets of a file."""
    before = b""
    for at in range(begin, end, _CHUNK_BYTES):
        chunk = before + read(at, _CHUNK_BYTES)
        if wanted in chunk:
            return True
        before = chunk[-len(wanted) + 1 :]
    return False


def _bmp_bytes(head: bytes) -> int:
    """Return the size that an uncompressed BMP must have."""
    begin, _, width, height, _, bits, compression = _unpack("<IIiiHHI", head, 10)
    rows = abs(height) * ((width * bits + 31) // 32 * 4)
    return begin + (rows if compression in (0, 3) else 0)
