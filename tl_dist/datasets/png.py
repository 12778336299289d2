"""Refuse a PNG (ISO 15948) whose chunks inflate to too much: a megabyte can become a gigabyte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from tl_dist.files import limits

_RATIO = 1032  # the maximum of Deflate
_PART_BYTES = 64 << 10
_TEXT_BYTES = 8_000_000  # of one chunk, libpng's limit
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PHOTOGRAPH_RATIO = 50  # inflated bytes for a compressed one, which photographs stay below


def refuse_costly(read: Callable[[int, int], bytes], length: int, *, thorough: bool) -> None:
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
