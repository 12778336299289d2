"""Refuse JPEG (ITU T.81) and PNG (ISO 15948) files that would take minutes or gigabytes to decode."""

import re
import struct
import zlib
from collections.abc import Callable, Iterator

from tl_dist.files import limits

Read = Callable[[int, int], bytes]
"""(offset, number) -> that many bytes, or fewer at the end of the file"""

_CHUNK_BYTES = 1 << 20

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_SCAN, _END, _EXIF = 0xDA, 0xD9, 0xE1
_NO_SIZE = frozenset({0xD8, 0x01, *range(0xD0, 0xD8)})  # markers without a segment
_FILL = re.compile(b"\xff+")
# A marker in a scan: neither a stuffed 0xFF, nor a restart, nor one that the decoder skips.
_MARKER = re.compile(b"\xff[\xc0-\xcf\xd9-\xfe]")

_RATIO = 1032  # the maximum of Deflate
_PART_BYTES = 64 << 10
_TEXT_BYTES = 8_000_000  # of one chunk, libpng's limit
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PHOTOGRAPH_RATIO = 50  # inflated bytes for a compressed one, which photographs stay below


class CutOff(ValueError):
    """Report that the bytes end within the header."""

    def __init__(self) -> None:
        super().__init__("is cut off in its header")


def jpeg_frame(head: bytes, read: Read) -> tuple[int, int, int]:
    """Return width and height of a JPEG, and the offset of its first scan.

    Raises ValueError for one that would take minutes: too many scans, or too much EXIF data, whose segments Pillow
    joins in quadratic time. `head` is the beginning of the file; raises CutOff if it ends before the first scan.
    The rest is read only if there are several scans.
    """
    exif, frame = 0, None
    for at, marker in _segments(head):
        if marker in _FRAMES:
            if at + 10 > len(head):
                raise CutOff
            frame = struct.unpack_from(">HHB", head, at + 5)
            is_progressive = marker in _PROGRESSIVE
        elif marker == _EXIF and head[at + 4 : at + 10] == b"Exif\0\0":
            exif += int.from_bytes(head[at + 2 : at + 4], "big")
            if exif > limits.JPEG_EXIF:
                raise ValueError(f"JPEG has more than {limits.JPEG_EXIF:,} bytes of EXIF data")
        elif marker in (_SCAN, _END):
            if frame is None:
                raise ValueError("JPEG without a frame header")
            height, width, channels = frame
            if marker == _SCAN and (is_progressive or head[at + 4 : at + 5] != bytes([channels])):
                _refuse_scans(read, at, width * height)
            return width, height, at
    if frame is None or read(len(head), 1):
        raise CutOff
    return frame[1], frame[0], len(head)  # the file ends before its first scan


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (offset, marker) of each segment up to the first scan, or to the end of `data`."""
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
        at += 2 if marker in _NO_SIZE else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError(f"JPEG has more than {limits.IMAGE_SEGMENTS:,} segments before its pixels")


def _refuse_scans(read: Read, first: int, pixels: int) -> None:
    work = 0
    for number, scan in enumerate(_scans(read, first), start=1):
        if number > limits.JPEG_SCANS:
            raise ValueError(f"JPEG has more than {limits.JPEG_SCANS} scans")
        # Measured with nearly empty scans: a first pass over coefficients takes 0.3 ns a pixel, which is 8 units here;
        # a refinement visits each coefficient, and a DC scan holds at least a bit for each block.
        begin, end, bits = scan[2 * scan[0] + 1 : 2 * scan[0] + 4].ljust(3, b"\0") if scan else bytes(3)
        work += pixels * (8 + (max(0, end - begin) if bits >> 4 else 0) if begin else 40)
        if work > 8 * limits.JPEG_SCANNED_PIXELS:
            raise ValueError(f"JPEG of {pixels:,} pixels has too many scans for its size")


def _scans(read: Read, at: int) -> Iterator[bytes]:
    """Yield the header behind the size of each scan from the one at `at` on, found as libjpeg does."""
    begin, chunk = at, b""
    for _ in range(limits.IMAGE_SEGMENTS):
        while (marker := _MARKER.search(chunk, at - begin)) is None or marker.end() + 16 > len(chunk):
            offset = begin + (marker.start() if marker else max(at - begin, len(chunk) - 1))
            is_last = len(chunk := read(offset, _CHUNK_BYTES)) < 32
            begin = at = offset
            if is_last:
                marker = _MARKER.search(chunk)
                break
        if marker is None or chunk[marker.start() + 1] == _END:
            return
        after = marker.end() + 2
        if chunk[marker.start() + 1] == _SCAN:
            yield chunk[after : after + 14]
        at = begin + marker.end() + int.from_bytes(chunk[marker.end() : after], "big")
    raise ValueError(f"JPEG has more than {limits.IMAGE_SEGMENTS:,} segments")


def refuse_costly_png(read: Read, length: int, *, thorough: bool) -> None:
    """Raise ValueError for a PNG that inflates to much more than its pixels need, or has too many chunks.

    Reads and inflates only as much as could exceed that; unless `thorough`, only the beginning if it resembles a
    photograph.
    """
    if length * _RATIO <= limits.PNG_INFLATED:
        return
    width, height, bits, colour = struct.unpack(">IIBB", read(16, 10).ljust(10, b"\0"))
    room = limits.PNG_INFLATED + (width * bits * _CHANNELS.get(colour, 4) // 8 + 4) * height
    pixels, at, text, chunks = _Pixels(room), 8, 0, 0
    while len(head := read(at, 8)) == 8 and (length - at) * _RATIO + pixels.inflated > room:
        size, kind = struct.unpack(">I4s", head)
        chunks += 1
        if chunks > limits.IMAGE_SEGMENTS + at // 1024:
            raise ValueError(f"PNG has {chunks:,} chunks in its first {at:,} bytes")
        if kind in (b"zTXt", b"iTXt"):
            text += 2 * min(size * _RATIO, _TEXT_BYTES)  # libpng inflates them once for their size
            if text > limits.PNG_INFLATED:
                raise ValueError("PNG has too much compressed text")
        if kind == b"IEND":
            return
        end = at + 8 + size
        at = at + 8 if kind == b"IDAT" else end
        while at < end and (length - at) * _RATIO + pixels.inflated > room:
            pixels.add(part := read(at, min(_PART_BYTES, end - at)))
            if not part or not (thorough or pixels.are_extreme):
                return
            at += len(part)
        at = end + 4


class _Pixels:
    """Count the bytes that the pixel chunks inflate to, without storing them; the decoder reports damage."""

    def __init__(self, room: int) -> None:
        self.inflated = self.taken = 0
        self._room = room
        self._stream = zlib.decompressobj()

    @property
    def are_extreme(self) -> bool:
        """Tell if the beginning is compressed more than a photograph, or is too short to tell."""
        return self.taken < _PART_BYTES or self.inflated >= _PHOTOGRAPH_RATIO * self.taken

    def add(self, part: bytes) -> None:
        """Inflate a part; raises ValueError if the total exceeds the room."""
        self.taken += len(part)
        try:
            while part and not self._stream.eof:
                self.inflated += len(self._stream.decompress(part, _PART_BYTES * 4))
                part = self._stream.unconsumed_tail
                if self.inflated > self._room:
                    raise ValueError("PNG has pixels that inflate to far more than its size needs")
        except zlib.error:
            self._stream = zlib.decompressobj()
