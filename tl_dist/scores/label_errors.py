"""Find labels that are likely wrong: confident learning (Northcutt et al., arXiv 1911.00068)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores.figures import LEAST, Labels, blocks


class Suspects(NamedTuple):
    """Examples whose label is likely wrong, the most suspicious first."""

    examples: NDArray[np.int64]
    likely: NDArray[np.int64]  # a more likely class for each


def label_errors(labels: Labels, probabilities: NDArray[np.floating]) -> Suspects:
    """Return the examples off the diagonal of the confident joint, ordered by the margin of their label, lowest first.

    `probabilities` [examples, classes] must come from a model that has not seen these labels. An example counts as a
    class if its probability is at least the mean probability of the examples with that label; among several such
    classes, as the most probable. An example whose label is predicted is no suspect.
    """
    num, num_classes = probabilities.shape
    own = probabilities[np.arange(num), labels].astype(np.float64)
    counts = np.bincount(labels, minlength=num_classes)
    likely, margin, off = np.empty(num, np.int64), np.empty(num), np.empty(num, bool)
    with np.errstate(invalid="ignore"):  # what is not finite is no probability, and no suspect
        means = np.bincount(labels, weights=own, minlength=num_classes) / np.maximum(counts, 1)
        known = means > LEAST  # neither a class without examples nor one that the model has never seen
        thresholds = np.where(known, means, np.inf)
        for rows in blocks(num, num_classes):
            block, of = probabilities[rows].copy(), labels[rows]
            every = np.arange(len(block))
            confident = np.where(block >= thresholds - 1e-6, block, -1.0)
            likely[rows] = confident.argmax(axis=1)
            is_counted = (confident[every, likely[rows]] >= 0) & (likely[rows] != of)
            off[rows] = is_counted & (block.argmax(axis=1) != of) & known[of]
            block[every, of] = -np.inf
            margin[rows] = own[rows] - block.max(axis=1)
    suspects = np.flatnonzero(off)
    ranked = suspects[np.argsort(margin[suspects], kind="stable")]
    return Suspects(ranked, likely[ranked])
