"""The blocks of a GIF (GIF89a Specification, W3C), as far as its first frame: no decoder needs to see the others."""

from __future__ import annotations

import struct
from typing import NamedTuple

_IMAGE, _EXTENSION, _CONTROL = 0x2C, 0x21, 0xF9


class CutOff(ValueError):
    """The bytes end before that which is looked for."""

    def __init__(self) -> None:
        super().__init__("is cut off in its header")


class Frame(NamedTuple):
    """The first frame: where its block begins, and what of the canvas it covers."""

    at: int
    corner: tuple[int, int]
    size: tuple[int, int]
    """width and height"""
    is_transparent: bool
    """whether one of its colours is"""


def first_frame(data: bytes, most_blocks: int) -> Frame:
    """The first frame; CutOff, or ValueError where more blocks come before it."""
    at = 13 + _colours(data, 10)
    blocks = 0
    is_transparent = False
    while _byte(data, at) == _EXTENSION:
        if _byte(data, at + 1) == _CONTROL:
            is_transparent = bool(_byte(data, at + 3) & 1)
        at += 2
        while size := _byte(data, at):
            at += 1 + size
            blocks += 1
            if blocks > most_blocks:
                raise ValueError(f"GIF has more than {most_blocks:,} blocks before its pixels")
        at += 1
    if data[at] != _IMAGE:
        raise ValueError(f"GIF has no block at byte {at}")
    if at + 9 > len(data):
        raise CutOff
    left, top, width, height = struct.unpack_from("<HHHH", data, at + 1)
    return Frame(at, (left, top), (width, height), is_transparent)


def first_frame_alone(data: bytes) -> bytes:
    """The file without the frames behind the first, to the same pixels: TensorFlow decodes them all to show one.

    What is damaged before the end of the first frame stays as it is, for the decoder to say.
    """
    try:
        at = first_frame(data, len(data)).at
        at += 10 + _colours(data, at + 9) + 1  # the descriptor, its colours, the width of a code
        while size := _byte(data, at):
            at += 1 + size
    except ValueError:
        return data
    return data[: at + 1] + b";"


def _colours(data: bytes, at: int) -> int:
    """Bytes of the table of colours that the flags at a place announce."""
    flags = _byte(data, at)
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise CutOff
    return data[at]
