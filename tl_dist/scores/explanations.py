"""The explanations that workers compute, passed on as a file in a private directory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.files.npz import read_npz, save_npz

_ANSWER = "explained.npz"


class Explained(NamedTuple):
    """Explanations of images, in the order of the request."""

    images: NDArray[np.uint8]
    """[n, size, size, 3], as the network sees them"""
    logits: NDArray[np.float32]
    """[n, classes], divided by the temperature of a calibrated run, as in `predict`"""
    classes: NDArray[np.int32]
    """[n]: the class that is explained"""
    cam: NDArray[np.float32]
    """[n, size, size], 0 to 1"""
    integrated: NDArray[np.float32]
    """[n, size, size], attributions summed over a pixel's three colours; [0, ...] if not requested"""
    gaps: NDArray[np.float32]
    """[n]: relative difference of their sum from the difference of the outputs"""

    def save(self, directory: Path) -> None:
        """Write the arrays into `directory`."""
        save_npz(directory / _ANSWER, **self._asdict())

    @classmethod
    def load(cls, directory: Path) -> Explained:
        """Read what `save` wrote into `directory`."""
        with (directory / _ANSWER).open("rb") as file:
            return cls(**read_npz(file))
