"""Coloured noise generated from the index, for trials and benchmarks of everything but the data."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits, host_tensor
from tl_dist.datasets.split import divide
from tl_dist.datasets.store import PixelStore

_NOISE = 64  # half width in grey levels; class colours lie within 60 of the middle, so nothing saturates
_PATTERNS = 61  # prime, so that each pattern occurs with each class
_STREAM = {"train": 0, "test": 1}


@dataclass(frozen=True, eq=False)
class SyntheticStore(PixelStore):
    """Generate square noise around the colour of the class, which a model can learn.

    Example k has class k mod num_classes; its pixels are a pure function of (split, k). The noise repeats after 61
    examples.
    """

    split: str
    num_examples: int
    num_classes: int
    image_size: int

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width."""
        return self.image_size, self.image_size

    def fingerprint(self, source: Source) -> str:
        """Return a hex digest of the parameters."""
        facts = f"split={self.split!r}, num_examples={self.num_examples}, num_classes={self.num_classes}"
        text = f"synthetic 2 SyntheticSource({facts}, image_size={self.image_size})"
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _tensors(self) -> tuple[Any, Any]:
        """Generate colours uint8 [num_classes, 3], and noise uint8 [patterns, size, size, 3] to add to them."""
        angles = 2 * math.pi * (np.arange(self.num_classes)[:, None] / self.num_classes + [0, 1 / 3, 2 / 3])
        colours = np.rint(128 - _NOISE + 60 * np.cos(angles)).astype(np.uint8)
        numbers = np.random.Generator(np.random.Philox(_STREAM[self.split]))
        shape = (min(self.num_examples, _PATTERNS), self.image_size, self.image_size, 3)
        return host_tensor(colours), host_tensor(numbers.integers(0, 2 * _NOISE, shape, np.uint8))

    def pixels(self, row: Any) -> Any:
        """Generate images at a scalar int64 or int64 [rows]."""
        import tensorflow as tf

        colours, noise = self._tensors
        colour = tf.gather(colours, row % self.num_classes)[..., None, None, :]
        return tf.gather(noise, row % noise.shape[0]) + colour


def synthetic_source(split: str, num_examples: int, num_classes: int, image_size: int) -> Source:
    """Make a source whose example k has class k modulo `num_classes`."""
    return Source(
        SyntheticStore(split, num_examples, num_classes, image_size),
        np.arange(num_examples, dtype=np.int32) % np.int32(num_classes),
        [f"{split}:{k}" for k in range(num_examples)],
        [f"class {k}" for k in range(num_classes)],
    )


def open_synthetic(data: DataConfig) -> Splits:
    """Open data.num_examples for training and test_fraction as many more for test; 32 pixels by default."""
    size = data.image_size or 32
    splits: dict[str, Source] = divide(
        synthetic_source("train", data.num_examples, data.num_classes, size), data, test=False
    )
    if num_test := int(data.num_examples * data.test_fraction + 0.5):
        splits["test"] = synthetic_source("test", num_test, data.num_classes, size)
    return splits
