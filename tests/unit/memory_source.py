"""A few images in memory, as a Source."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf


class MemorySource:
    """`num_examples` random images of `size` pixels; label k belongs to image k modulo the number of classes."""

    reads_many = True

    def __init__(self, num_examples: int, size: int = 8, num_classes: int = 3) -> None:
        self.num_examples, self.num_classes = num_examples, num_classes
        self.class_names = [f"class {k}" for k in range(num_classes)]
        self.fingerprint = f"{num_examples} {size} {num_classes}"
        self.images = np.random.default_rng(0).integers(0, 256, (num_examples, size, size, 3), dtype=np.uint8)
        self.labels = (np.arange(num_examples) % num_classes).astype(np.int32)
        self.ids = [str(k) for k in range(num_examples)]

    def read(self, index: Any) -> tuple[Any, Any]:
        return tf.gather(tf.constant(self.images), index), tf.gather(tf.constant(self.labels), index)
