"""Parse the blocks of a GIF (GIF89a Specification, W3C) up to its first frame, the only one that is decoded."""

from __future__ import annotations

import struct
from typing import NamedTuple

_IMAGE, _EXTENSION, _CONTROL = 0x2C, 0x21, 0xF9


class CutOff(ValueError):
    """Report that the bytes end within the header."""

    def __init__(self) -> None:
        super().__init__("is cut off in its header")


class Frame(NamedTuple):
    """Describe the first frame: where its block begins, and which part of the canvas it covers."""

    at: int
    corner: tuple[int, int]
    size: tuple[int, int]
    """width and height"""
    is_transparent: bool
    """one of its colours is transparent"""


def first_frame(data: bytes, most_blocks: int) -> Frame:
    """Find the first frame; raises CutOff, or ValueError if more than `most_blocks` come before it."""
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
    """Cut the file after the first frame, for the same pixels: TensorFlow decodes all frames to return one.

    A file damaged before the end of the first frame is returned unchanged, for the decoder to report.
    """
    try:
        at = first_frame(data, len(data)).at
        at += 10 + _colours(data, at + 9) + 1  # the descriptor, its colour table, the code size
        while size := _byte(data, at):
            at += 1 + size
    except ValueError:
        return data
    return data[: at + 1] + b";"


def _colours(data: bytes, at: int) -> int:
    """Return the size of the colour table that the flags at `at` announce."""
    flags = _byte(data, at)
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise CutOff
    return data[at]
