"""Which labels are likely to be wrong: confident learning (Northcutt et al., arXiv 1911.00068)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores.figures import LEAST, Labels


class Suspects(NamedTuple):
    """Examples whose label is likely wrong, the most suspicious first."""

    examples: NDArray[np.int64]
    likely: NDArray[np.int64]
    """the class of each that it more likely has"""


def label_errors(labels: Labels, probabilities: NDArray[np.floating]) -> Suspects:
    """Examples counted off the diagonal of the confident joint, by the margin of their label, lowest first.

    `probabilities` [examples, classes] must come from a model that has not seen these labels. An example is counted
    as of a class where its probability is at least the mean one of the examples that are labelled so; of several such
    classes, as of the most probable. One that is predicted as it is labelled is no suspect.
    """
    num, num_classes = probabilities.shape
    every, own = np.arange(num), probabilities[np.arange(num), labels].astype(np.float64)
    counts = np.bincount(labels, minlength=num_classes)
    means = np.bincount(labels, weights=own, minlength=num_classes) / np.maximum(counts, 1)
    known = means > LEAST  # not a class that nobody is labelled as, or that the model has never seen
    thresholds = np.where(known, means, np.inf)
    confident = np.where(probabilities >= thresholds - 1e-6, probabilities, -1.0)
    likely = confident.argmax(axis=1)
    off = (confident[every, likely] >= 0) & (likely != labels) & (probabilities.argmax(axis=1) != labels)
    off &= known[labels]
    others = probabilities.copy()
    others[every, labels] = -np.inf
    margin = own - others.max(axis=1)
    found = np.flatnonzero(off)
    ranked = found[np.argsort(margin[found], kind="stable")]
    return Suspects(ranked, likely[ranked])
