"""What keeps the images of a source: pixels at hand, or encoded files and parts of files."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets.byte_range import Location

if TYPE_CHECKING:
    from tl_dist.datasets import Source


def without_cached(record: Any) -> dict[str, Any]:
    """The fields of a dataclass for a pickle: what it has cached may be tensors, which stay in their process."""
    return {field.name: record.__dict__[field.name] for field in dataclasses.fields(record)}


class Store(ABC):
    """Images by row. Methods that take a tensor are traced inside tf.data."""

    @abstractmethod
    def fingerprint(self, source: Source) -> str:
        """A hex digest over the images and what `source`, which has all of them in order, says of each."""

    __getstate__ = without_cached


class PixelStore(Store):
    """Images in memory, or made up. With `reads_many` they are of one size, and `pixels` takes int64 [rows], too."""

    reads_many = True

    @abstractmethod
    def pixels(self, row: Any) -> Any:
        """uint8 [height, width, 3], RGB, at a scalar int64."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width of the first image."""

    def kept(self, row: int) -> NDArray[np.uint8] | None:
        """The pixels without TensorFlow; None where they are made up when read."""
        return None


class EncodedStore(Store):
    """Images still encoded as PNG, JPEG, GIF, BMP, WebP or TIFF."""

    @abstractmethod
    def encoded(self, row: Any) -> Any:
        """The bytes of the image file, a scalar string."""

    def encoded_rows(self, rows: Any) -> Any:
        """String [rows] at int64 [rows], whose number is known when this is traced."""
        import tensorflow as tf

        return tf.stack([self.encoded(row) for row in tf.unstack(rows)])

    @abstractmethod
    def encoded_bytes(self, row: int) -> bytes:
        """The same bytes without TensorFlow; OSError when they cannot be had."""

    @abstractmethod
    def location(self, row: int) -> Location:
        """Where the encoded image lies: for checks that read bytes without decoding them."""
