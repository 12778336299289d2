"""Where the image and the label are in a serialised tf.train.Example, without TensorFlow and without copying.

The wire format is that of "Encoding" in the Protocol Buffers documentation. An Example is Features in field 1,
which is a map in field 1: entries of key (1) and Feature (2), a list of bytes (1), floats (2) or integers (3).
"""

from __future__ import annotations

from typing import NamedTuple

IMAGE_KEYS = (b"image/encoded", b"image")
LABEL_KEYS = (b"image/class/label", b"label")
_SYNSET = b"image/class/synset"
_TEXT = b"image/class/text"
_FILENAMES = (b"image/filename", b"file_name")
_WANTED = frozenset((*IMAGE_KEYS, *LABEL_KEYS, _SYNSET, _TEXT, *_FILENAMES))


class Parsed(NamedTuple):
    """What an Example says; offset and size are those of the encoded image inside its bytes."""

    offset: int
    size: int
    label: int
    synset: bytes
    text: bytes
    filename: bytes


def parse(data: bytes) -> Parsed:
    """The parts of an Example with an encoded image and one integer label; ValueError says what is missing."""
    try:
        return _parse(data)
    except IndexError:
        raise ValueError("it is cut off inside") from None


def _parse(data: bytes) -> Parsed:
    found = _features(data)
    image = found.get(IMAGE_KEYS[0]) or found.get(IMAGE_KEYS[1])
    label = found.get(LABEL_KEYS[0]) or found.get(LABEL_KEYS[1])
    if image is None:
        raise ValueError("it has no image/encoded")
    if label is None:
        raise ValueError("it has no image/class/label")
    begin, end = _bytes(data, *image)
    if begin == end:
        raise ValueError("its image/encoded is empty")
    synset, text = _text(data, found.get(_SYNSET)), _text(data, found.get(_TEXT))
    filename = _text(data, found.get(_FILENAMES[0]) or found.get(_FILENAMES[1]))
    return Parsed(begin, end - begin, _integer(data, *label), synset, text, filename)


def _features(data: bytes) -> dict[bytes, tuple[int, int]]:
    """Begin and end of each wanted Feature."""
    position, end = _field(data, 0, len(data), 0x0A)
    found: dict[bytes, tuple[int, int]] = {}
    while position < end:
        position, stop = _field(data, position, end, 0x0A)
        begin, key_end = _field(data, position, stop, 0x0A)
        key = data[begin:key_end]
        if key in _WANTED:
            found[key] = _field(data, key_end, stop, 0x12) if key_end < stop else (stop, stop)
        position = stop
    return found


def _field(data: bytes, position: int, end: int, tag: int) -> tuple[int, int]:
    """Begin and end of the content of the length-delimited field at `position`, which must have this tag."""
    if data[position] != tag:
        raise ValueError("it is no tf.train.Example")
    size = data[position + 1]
    position += 2
    if size & 0x80:
        size, position = _varint(data, position - 1)
    stop = position + size
    if stop > end:
        raise ValueError("it is cut off inside")
    return position, stop


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("it holds a number of more than 64 bits")


def _bytes(data: bytes, begin: int, end: int) -> tuple[int, int]:
    if begin == end:
        return begin, begin
    begin, end = _field(data, begin, end, 0x0A)
    return _field(data, begin, end, 0x0A) if begin < end else (begin, begin)


def _text(data: bytes, place: tuple[int, int] | None) -> bytes:
    if place is None:
        return b""
    begin, end = _bytes(data, *place)
    return data[begin:end]


def _integer(data: bytes, begin: int, end: int) -> int:
    """The one number of an Int64List, packed or not."""
    if begin < end and data[begin] != 0x1A:
        raise ValueError("its label is no integer")
    begin, end = _field(data, begin, end, 0x1A) if begin < end else (end, end)
    if begin == end:
        raise ValueError("its label is empty")
    tag = data[begin]
    if tag == 0x0A:
        begin, stop = _field(data, begin, end, 0x0A)
    elif tag == 0x08:
        begin, stop = begin + 1, end
    else:
        raise ValueError("its label is no integer")
    value, position = _varint(data, begin)
    if position != stop:
        raise ValueError("it has more than one label")
    return value - (1 << 64) if value >> 63 else value
