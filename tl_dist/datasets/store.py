"""Stores: what holds the images of a source, as pixels or as encoded files and parts of files."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tl_dist.files import limits
from tl_dist.files.foreign import read_file, read_slice

if TYPE_CHECKING:
    from tl_dist.datasets import Source


class Location(NamedTuple):
    """Locate an encoded image: `length` bytes of a file from `offset`; without a length, to the end of the file."""

    path: Path
    offset: int = 0
    length: int | None = None
    crc32c: int | None = None
    """checksum of these bytes, if one is known"""

    def read(self) -> bytes:
        """Read the bytes of the image; raises OSError if that fails, or if they do not have the checksum."""
        if self.length is None:
            return read_file(self.path, max_bytes=limits.ENCODED_IMAGE, links=True)
        content = read_slice(self.path, self.offset, self.length)
        if len(content) < self.length:
            raise OSError(f"{self.path} ends before offset {self.offset + self.length}")
        if self.crc32c not in (None, google_crc32c.value(content)):
            raise OSError(f"the checksum at offset {self.offset} is wrong")
        return content


def without_cached(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass for pickling; cached properties may be tensors, which stay in their process."""
    return {field.name: record.__dict__[field.name] for field in dataclasses.fields(record)}


class Store(ABC):
    """Hold images by row. Methods that take a tensor are traced inside tf.data."""

    @abstractmethod
    def fingerprint(self, source: Source) -> str:
        """Return a hex digest of the images and of the metadata in `source`, which holds all of them in order."""

    __getstate__ = without_cached


class PixelStore(Store):
    """Hold or generate images in memory. If `reads_many`, they have one size and `pixels` takes int64 [rows], too."""

    reads_many = True

    @abstractmethod
    def pixels(self, row: Any) -> Any:
        """Return the RGB image uint8 [height, width, 3] at a scalar int64."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Return height and width of the first image."""

    def kept(self, row: int) -> NDArray[np.uint8] | None:
        """Return the stored pixels without TensorFlow; None if images are generated when read."""
        return None


class EncodedStore(Store):
    """Hold images encoded as PNG, JPEG, GIF, BMP, WebP or TIFF."""

    @abstractmethod
    def encoded_rows(self, rows: Any) -> Any:
        """Read image files string [rows] at int64 [rows], whose static shape must be known."""

    @abstractmethod
    def location(self, row: int) -> Location:
        """Locate an encoded image, to read it without TensorFlow."""
