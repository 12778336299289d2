"""How unlike the training images an image is: the distance to its k-th nearest neighbour in feature space.

Features are the inputs of the last layer, scaled to length 1 (Sun et al. 2022, arXiv 2204.06507). Stored in
RUN/neighbours.npz, bound to the digest of one checkpoint.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores.arrays import Arrays

FILE = "neighbours.npz"
MOST_BYTES = 256 << 20
"""of stored features; if there are more training images than fit, they are chosen at random"""


@dataclass(frozen=True, eq=False)
class Neighbours(Arrays):
    """Features of training images, and the distances of validation images from them."""

    WHAT = "neighbours"
    FIX = "make it again: tl-dist calibrate RUN --unknown; or remove the file."

    sha256: str  # of the checkpoint
    features: Annotated[NDArray[np.float32], "f4 images width"]  # each of length 1
    of_known: Annotated[NDArray[np.float32], "f4 known"]  # the distance of each validation image

    def distances(self, features: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
        """Return the distance of each row to its k-th nearest neighbour; `batch` as in the function `distances`."""
        return distances(self.features, normalised(features), batch)


def normalised(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each row to length 1; rows of zeros are unchanged."""
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return (features / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)


def chosen(num_examples: int, width: int, seed: int) -> NDArray[np.int64]:
    """Choose the training images whose features are stored, in ascending order."""
    most = max(1, MOST_BYTES // (4 * width))
    if num_examples <= most:
        return np.arange(num_examples)
    return np.sort(np.random.default_rng(seed).choice(num_examples, most, replace=False))


def distances(stored: NDArray[np.float32], queries: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    """Return the Euclidean distance from each query to its k-th nearest row of `stored`; all rows have length 1.

    k is a thousandth of the stored rows, as in the paper, but at least 5.
    The rounding of a matrix product depends on its shape and on the position of a row. The product is therefore always
    of `batch` queries, so that an evaluation has the same bits in pieces of any number of whole batches.
    """
    nearest = min(len(stored), max(5, len(stored) // 1000))
    result = np.empty(len(queries), np.float32)
    block = np.zeros((batch, stored.shape[1]), np.float32)
    for first in range(0, len(queries), batch):
        rows = queries[first : first + batch]
        block[: len(rows)] = rows
        cosines = block @ stored.T
        kth = np.argpartition(cosines, len(stored) - nearest, axis=1)[: len(rows), len(stored) - nearest]
        # Not from the cosine: near 1 it has few digits left.
        result[first : first + batch] = np.linalg.norm(stored[kth].astype(np.float64) - rows, axis=1)
    return result


def of_checkpoint(run: Path, sha256: str) -> Neighbours | None:
    """Load the neighbours of this very checkpoint, or None. Refuses (65) a damaged file."""
    neighbours = Neighbours.load(run / FILE) if os.path.lexists(run / FILE) else None
    return neighbours if neighbours and neighbours.sha256 == sha256 else None
