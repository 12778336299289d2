"""Small images that are held in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Counted, host_tensor


@dataclass(frozen=True, eq=False)
class ArraySource(Counted):
    """A `Source` of images of one size: `images` uint8 [N, height, width, 3], `labels` int32 [N].

    The fingerprint is over every pixel and label and the class names, so it is the same for any file format.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    class_names: Sequence[str]
    ids: Sequence[str]
    reads_many: ClassVar[bool] = True

    def __post_init__(self) -> None:
        sizes = {len(self.images), len(self.labels), len(self.ids)}
        if len(sizes) != 1 or self.images.dtype != np.uint8 or self.images.shape[3:] != (3,):
            raise ValueError("images must be uint8 [N, height, width, 3], with N labels and N ids")

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([self.images.shape, list(self.class_names)]).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.astype("<i4").tobytes())
        return digest.hexdigest()

    @cached_property
    def _tensors(self) -> tuple[Any, Any]:
        return host_tensor(self.images), host_tensor(self.labels)

    def read(self, index: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        images, labels = self._tensors
        return tf.gather(images, index), tf.gather(labels, index)
