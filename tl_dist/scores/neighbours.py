"""How unlike the training images an image is: the distance to the k-th nearest in feature space.

Features are what the last layer takes, scaled to length 1 (Sun et al. 2022, arXiv 2204.06507). Kept in
RUN/neighbours.npz, bound to the digest of one checkpoint. No pickled object is ever written or read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.files.npz import load_npz

FILE = "neighbours.npz"
MOST_BYTES = 256 << 20
"""of features that are kept; of more training images as many as fit, chosen at random"""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Features of training images, and how far validation images are from them."""

    sha256: str
    """of the checkpoint"""
    features: NDArray[np.float32]
    """[images, width], each of length 1"""
    of_known: NDArray[np.float32]
    """the distance of each validation image"""

    def __post_init__(self) -> None:
        right = (
            self.features.ndim == 2
            and len(self.features) > 0
            and self.features.dtype == self.of_known.dtype == np.float32
            and self.of_known.ndim == 1
            and len(self.of_known) > 0
        )
        if not right:
            raise ValueError("its arrays are not those of neighbours")

    def arrays(self) -> dict[str, Any]:
        """For `predictions.save`."""
        return dict(vars(self))

    def distances(self, features: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
        """That of each row to its k-th nearest; `batch` as below."""
        return distances(self.features, normalised(features), batch)


def normalised(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row at length 1; zeros stay."""
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return (features / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)


def chosen(num_examples: int, width: int, seed: int) -> NDArray[np.int64]:
    """Which of so many training images are kept, in ascending order."""
    most = max(1, MOST_BYTES // (4 * width))
    if num_examples <= most:
        return np.arange(num_examples)
    return np.sort(np.random.default_rng(seed).choice(num_examples, most, replace=False))


def num_nearest(num_kept: int) -> int:
    """k: one in a thousand of those that are kept, as in the paper; of few images 5."""
    return min(num_kept, max(5, num_kept // 1000))


def distances(kept: NDArray[np.float32], queries: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    """Euclidean, from each query to the k-th nearest of `kept`; all rows have length 1.

    A matrix product rounds by its shape and by the place of a row in it: it is always of `batch` queries, so that those
    of an evaluation have the same bits in pieces of any number of whole batches.
    """
    nearest = num_nearest(len(kept))
    found = np.empty(len(queries), np.float32)
    block = np.zeros((batch, kept.shape[1]), np.float32)
    for first in range(0, len(queries), batch):
        rows = queries[first : first + batch]
        block[: len(rows)] = rows
        cosines = block @ kept.T
        those = np.argpartition(cosines, len(kept) - nearest, axis=1)[: len(rows), len(kept) - nearest]
        # Not from the cosine: near 1 it has few digits left.
        found[first : first + batch] = np.linalg.norm(kept[those].astype(np.float64) - rows, axis=1)
    return found


def of_checkpoint(run: Path, sha256: str) -> Neighbours | None:
    """Those of this very checkpoint; None where there are none. Refuses (65) a damaged file."""
    path = run / FILE
    if not os.path.lexists(path):
        return None
    found = load_npz(
        path,
        lambda kept: Neighbours(str(kept["sha256"]), kept["features"], kept["of_known"]),
        what="neighbours",
        fix="make it again: tl-dist calibrate RUN --unknown; or remove the file.",
    )
    return found if found.sha256 == sha256 else None
