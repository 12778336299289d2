"""What workers answer that explain images: a file in a private directory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.files.npz import read_npz
from tl_dist.scores import predictions

_ANSWER = "explained.npz"


class Explained(NamedTuple):
    """Of each image, in the order of the request."""

    images: NDArray[np.uint8]
    """[n, size, size, 3], as the network sees them"""
    logits: NDArray[np.float32]
    """[n, classes], at the temperature of a calibrated run, as those of `predict`"""
    classes: NDArray[np.int32]
    """which is explained"""
    cam: NDArray[np.float32]
    """[n, size, size], 0 to 1"""
    integrated: NDArray[np.float32]
    """[n, size, size], the attributions of a pixel's three colours together; [0, ...] where they were not asked for"""
    gaps: NDArray[np.float32]
    """[n]: how far their sum is from the difference of the outputs, as a share of it"""

    def save(self, directory: Path) -> None:
        predictions.save(directory / _ANSWER, **self._asdict())

    @classmethod
    def load(cls, directory: Path) -> Explained:
        with (directory / _ANSWER).open("rb") as file:
            return cls(**read_npz(file))
