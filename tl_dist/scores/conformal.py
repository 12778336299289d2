"""Conformal prediction: sets of classes that contain the true class, and alarms for unknown images, at a stated rate.

Both compare an image with validation images that were not trained on. If it comes from the same distribution, its rank
among them is uniform (split conformal prediction; Vovk, Gammerman and Shafer 2005). That holds for finitely many images
and any network, but not for images of another origin.
"""

import math

import numpy as np
from numpy.typing import NDArray

from tl_dist.refusal import ExitCode, Refusal


def least_probability(of_true: NDArray[np.floating], coverage: float, name: str = "coverage") -> float:
    """Return the least probability of a class in the set, so that the set contains the true class at this rate or more.

    Least ambiguous sets (Sadinle, Lei and Wasserman 2019, arXiv 1609.00451): the smallest on average of all sets with
    this rate. `of_true` is the probability of the true class of each validation image; refuses (65) too few images for
    the rate.
    """
    num = len(of_true)
    rank = num + 1 - math.ceil(round((num + 1) * coverage, 9))  # rounded, so that no error changes it by one
    if rank < 1:
        instead = f"--{name} {math.floor(100 * num / (num + 1)) / 100:g}"
        raise _too_few(name, num, 1 - coverage, instead)
    return float(np.partition(of_true, rank - 1)[rank - 1])


def half_widths(errors: NDArray[np.floating], coverage: float) -> list[float]:
    """Return for each target how far an interval reaches to both sides of an answer, to hold the truth at this rate.

    `errors` [images, targets] are absolute, of validation images (Vovk et al. 2005; Lei et al. 2018, JASA 113): each
    target's interval by itself holds its truth at this rate or more. Refuses (65) too few images for the rate.
    """
    num = len(errors)
    rank = math.ceil(round((num + 1) * coverage, 9))
    if rank > num:
        raise _too_few("coverage", num, 1 - coverage, f"--coverage {math.floor(100 * num / (num + 1)) / 100:g}")
    return np.partition(errors.astype(np.float64), rank - 1, axis=0)[rank - 1].tolist()


def sets(probabilities: NDArray[np.float32], least: float) -> NDArray[np.int32]:
    """Return how many of the most probable classes of each row are in its set: at least one, even if none is needed."""
    counts = (probabilities >= np.float32(least)).sum(axis=1)
    return np.maximum(counts, 1).astype(np.int32)


def p_values(strangeness: NDArray[np.floating], of_known: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return how often images like those in validation are at least as strange: in (0, 1], small for unknown images.

    (1 + the number of validation images that are at least as strange) / (1 + their number): among images of the same
    distribution, at most a fraction `rate` has a value of `rate` or less.
    """
    ascending = np.sort(of_known)
    as_strange = len(ascending) - np.searchsorted(ascending, strangeness, "left")
    return ((1 + as_strange) / (1 + len(ascending))).astype(np.float32)


def refuse_rate(num: int, rate: float) -> None:
    """Refuse (65) a false-alarm rate that no p-value of so many validation images can reach."""
    if rate * (num + 1) < 1:
        raise _too_few("false-alarm rate", num, rate, f"--unknown {math.ceil(1000 / (num + 1)) / 1000:g}")


def _too_few(what: str, num: int, share: float, instead: str) -> Refusal:
    return Refusal(
        f"{num:,} validation images are too few for this {what}: it takes {math.ceil(round(1 / share, 9)) - 1:,}.",
        fix=f"use {instead}, or train with a larger data.validation_fraction.",
        code=ExitCode.DATA,
    )
