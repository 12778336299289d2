"""Find the image and the label in a serialised tf.train.Example, and serialise one, without TensorFlow.

The wire format is described in "Encoding" in the Protocol Buffers documentation. An Example is Features in field 1,
which is a map in field 1: entries of key (1) and Feature (2), a list of bytes (1), floats (2) or integers (3).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

_SYNSET = b"image/class/synset"
_TEXT = b"image/class/text"
_FILENAMES = (b"image/filename", b"file_name")


@dataclass(frozen=True)
class Keys:
    """Name the keys of image and label, the first present one wins; the defaults cover the usual writers."""

    image: tuple[bytes, ...] = (b"image/encoded", b"image")
    label: tuple[bytes, ...] = (b"image/class/label", b"label")
    targets: tuple[bytes, ...] = ()
    """keys of one number each, instead of a label"""
    lists: bool = False
    """whether the label is a list of any length"""

    @cached_property
    def wanted(self) -> frozenset[bytes]:
        """Return every key that `parse` reads."""
        return frozenset((*self.image, *self.label, *self.targets, _SYNSET, _TEXT, *_FILENAMES))


KEYS = Keys()


class Parsed(NamedTuple):
    """Hold the parsed fields of an Example; `offset` and `size` locate the encoded image in its bytes."""

    offset: int
    size: int
    label: int
    synset: bytes
    text: bytes
    filename: bytes
    answers: list[float] | list[int] | None = None
    """the targets, or the labels of a list"""


def parse(data: bytes, keys: Keys = KEYS) -> Parsed:
    """Parse an Example with an encoded image and one integer label; raises ValueError that says what is missing.

    With `keys.targets` or `keys.lists` there are `answers`, and the label is 0.
    """
    try:
        features = _features(data, keys.wanted)
        image, label = _first(features, keys.image), _first(features, keys.label)
        if image is None:
            raise ValueError(f"it has no {keys.image[0].decode()}")
        if missing := [key for key in keys.targets if key not in features]:
            raise ValueError(f"it has no {missing[0].decode()}")
        if label is None and not keys.targets:
            raise ValueError(f"it has no {keys.label[0].decode()}")
        begin, end = _bytes(data, *image)
        if begin == end:
            raise ValueError(f"its {keys.image[0].decode()} is empty")
        synset, text = _text(data, features.get(_SYNSET)), _text(data, features.get(_TEXT))
        filename = _text(data, _first(features, _FILENAMES))
        place = begin, end - begin
        if keys.targets:
            return Parsed(*place, 0, synset, text, filename, [_float(data, *features[key]) for key in keys.targets])
        assert label is not None
        if keys.lists:
            return Parsed(*place, 0, synset, text, filename, _integers(data, *label))
        return Parsed(*place, _integer(data, *label), synset, text, filename)
    except IndexError:
        raise ValueError("it is cut off inside") from None


def _features(data: bytes, wanted: frozenset[bytes]) -> dict[bytes, tuple[int, int]]:
    """Return begin and end of each wanted Feature."""
    position, end = _field(data, 0, len(data), 0x0A)
    features: dict[bytes, tuple[int, int]] = {}
    while position < end:
        position, stop = _field(data, position, end, 0x0A)
        begin, key_end = _field(data, position, stop, 0x0A)
        key = data[begin:key_end]
        if key in wanted:
            features[key] = _field(data, key_end, stop, 0x12) if key_end < stop else (stop, stop)
        position = stop
    return features


def _first(features: dict[bytes, tuple[int, int]], keys: tuple[bytes, ...]) -> tuple[int, int] | None:
    return next((features[key] for key in keys if key in features), None)


def _field(data: bytes, position: int, end: int, tag: int) -> tuple[int, int]:
    """Return begin and end of the content of the length-delimited field at `position`, which must have this tag."""
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
            if value >> 64:
                break
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
    """Return the only number of an Int64List, packed or not."""
    numbers = _integers(data, begin, end, most=1)
    if not numbers:
        raise ValueError("its label is empty")
    return numbers[0]


def _integers(data: bytes, begin: int, end: int, *, most: int | None = None) -> list[int]:
    """Return the numbers of an Int64List, packed or not; none of an empty list of any kind. Refuse more than `most`."""
    if end - begin == 2 and not data[begin + 1]:
        return []
    if begin < end and data[begin] != 0x1A:
        raise ValueError("its label is no integer")
    position, stop = _field(data, begin, end, 0x1A) if begin < end else (end, end)
    numbers = list[int]()
    while position < stop:
        if data[position] == 0x0A:
            position, last = _field(data, position, stop, 0x0A)
        elif data[position] == 0x08:
            position, last = position + 1, position + 2  # one number, of a byte or more
        else:
            raise ValueError("its label is no integer")
        while position < last:
            if len(numbers) == most:
                raise ValueError("it has more than one label")
            value, position = _varint(data, position)
            numbers.append(value - (1 << 64) if value >> 63 else value)
    return numbers


def _float(data: bytes, begin: int, end: int) -> float:
    """Return the only number of a FloatList, packed or not, or of an Int64List."""
    if begin < end and data[begin] == 0x1A:
        return float(_integer(data, begin, end))
    content = data[slice(*_field(data, begin, end, 0x12))] if begin < end else b""
    head = {0x0A: 2, 0x0D: 1}.get(content[0] if content else 0, 0)
    if not head or len(content) != head + 4:
        raise ValueError("a target of it is not one number")
    return float(struct.unpack("<f", content[head:])[0])


def serialize(features: Mapping[str, bytes | int]) -> bytes:
    """Serialise an Example of byte strings and of integers from 0."""
    return _delimited(0x0A, b"".join(_entry(key, value) for key, value in features.items()))


def _entry(key: str, value: bytes | int) -> bytes:
    if isinstance(value, int):
        feature = _delimited(0x1A, _delimited(0x0A, _varint_of(value)))
    else:
        feature = _delimited(0x0A, _delimited(0x0A, value))
    return _delimited(0x0A, _delimited(0x0A, key.encode()) + _delimited(0x12, feature))


def _delimited(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + _varint_of(len(content)) + content


def _varint_of(value: int) -> bytes:
    low = bytearray()
    while value > 0x7F:
        low.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*low, value])
