"""Sources of small images in memory."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Source, host_tensor
from tl_dist.datasets.store import PixelStore


@dataclass(frozen=True, eq=False)
class ArrayStore(PixelStore):
    """Hold images of one size: uint8 [N, height, width, 3]."""

    images: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            raise ValueError("images must be uint8 [N, height, width, 3]")

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width."""
        return self.images.shape[1], self.images.shape[2]

    def kept(self, row: int) -> NDArray[np.uint8]:
        """Return the pixels of an image without TensorFlow."""
        image: NDArray[np.uint8] = self.images[row]
        return image

    def fingerprint(self, source: Source) -> str:
        """Return a hex digest of pixels, labels and class names: the same for any file format."""
        digest = hashlib.sha256(json.dumps([self.images.shape, list(source.class_names)]).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(source.labels.astype("<i4").tobytes())
        return digest.hexdigest()

    @cached_property
    def tensor(self) -> Any:
        """Return the images as one tensor in host memory."""
        return host_tensor(self.images)

    def pixels(self, row: Any) -> Any:
        """Return images at a scalar int64 or int64 [rows]."""
        import tensorflow as tf

        return tf.gather(self.tensor, row)


def array_source(
    images: NDArray[np.uint8], labels: NDArray[np.int32], class_names: Sequence[str], ids: Sequence[str]
) -> Source:
    """Make a source of images in memory with labels int32 [N]."""
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images for {len(labels)} labels")
    return Source(ArrayStore(images), labels, ids, class_names)
