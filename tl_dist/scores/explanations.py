"""What is asked of workers that explain images, and what they answer: two files in a private directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.files.atomic import write_atomically
from tl_dist.files.npz import read_npz
from tl_dist.scores import predictions

MAX_IMAGES = 1_000
"""of one request: what is said of them is in memory"""

_REQUEST, _ANSWER = "request.json", "explained.npz"


@dataclass(frozen=True)
class Request:
    """Images to explain: files, or examples of a split of the run's own data set."""

    cam: str
    """layercam or gradcam"""
    integrated: bool
    """integrated gradients as well"""
    files: Sequence[str] = ()
    split: str = ""
    examples: Sequence[int] = ()
    classes: Sequence[int] = ()
    """the class to explain of each; default: the one that is predicted"""

    def save(self, directory: Path) -> None:
        write_atomically(directory / _REQUEST, json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, directory: Path) -> Request:
        return cls(**json.loads((directory / _REQUEST).read_text()))


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
