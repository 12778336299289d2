"""Parse the segments of a JPEG (ITU T.81), and refuse one that is costly to decode."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from tl_dist.datasets.gif import CutOff
from tl_dist.files import limits

FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_SCAN, _END, _EXIF = 0xDA, 0xD9, 0xE1
_NO_SIZE = frozenset({0xD8, 0x01, *range(0xD0, 0xD8)})  # markers without a segment
_FILL = re.compile(b"\xff+")
# A marker in a scan: neither a stuffed 0xFF, nor a restart, nor one that the decoder skips.
_MARKER = re.compile(b"\xff[\xc0-\xcf\xd9-\xfe]")
_CHUNK_BYTES = 1 << 20


def segments(data: bytes) -> Iterator[tuple[int, int]]:
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
        if marker in (_SCAN, _END):
            return
        at += 2 if marker in _NO_SIZE else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError(f"JPEG has more than {limits.IMAGE_SEGMENTS:,} segments before its pixels")


def refuse_costly(head: bytes, read: Callable[[int, int], bytes], pixels: int) -> None:
    """Raise ValueError for a JPEG that would take minutes: too many scans, or too much EXIF data.

    Pillow joins EXIF segments one by one, in quadratic time. `head` is the beginning of the file; raises CutOff if it
    ends before the first scan. The rest is read only if there are several scans.
    """
    exif, channels, is_progressive = 0, b"", False
    for at, marker in segments(head):
        if marker in FRAMES:
            is_progressive, channels = marker in _PROGRESSIVE, head[at + 9 : at + 10]
        elif marker == _EXIF and head[at + 4 : at + 10] == b"Exif\0\0":
            exif += int.from_bytes(head[at + 2 : at + 4], "big")
            if exif > limits.JPEG_EXIF:
                raise ValueError(f"JPEG has more than {limits.JPEG_EXIF:,} bytes of EXIF data")
        elif marker == _SCAN:
            if is_progressive or head[at + 4 : at + 5] != channels:
                _refuse_scans(read, at, pixels)
            return
    if read(len(head), 1):
        raise CutOff


def _refuse_scans(read: Callable[[int, int], bytes], first: int, pixels: int) -> None:
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


def _scans(read: Callable[[int, int], bytes], at: int) -> Iterator[bytes]:
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
