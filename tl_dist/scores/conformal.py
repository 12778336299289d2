"""Statements about single images that hold at a stated rate: sets that hold the true class, images that fit none.

Both compare an image with validation images that were not trained on. If it is one more draw of the same kind, its rank
among them is equally likely to be any (split conformal prediction; Vovk, Gammerman and Shafer 2005). That holds for
finitely many images, whatever the network; not for images of another origin.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tl_dist.refusal import ExitCode, Refusal


def least_probability(of_true: NDArray[np.floating], coverage: float) -> float:
    """The probability from which on a class belongs to the set, so that the true one does at this rate, or more often.

    Least ambiguous sets (Sadinle, Lei and Wasserman 2019, arXiv 1609.00451): of all rules that hold the true class as
    often, the smallest sets on average. `of_true`: that of the true class of each validation image, of which there
    must be enough for the rate to be less than always (refused, 65).
    """
    num = len(of_true)
    rank = _rank(num, coverage)
    if rank < 1:
        raise _too_few(
            "coverage", num, 1 - coverage, f"--coverage {math.floor(100 * num / (num + 1)) / 100:g}"
        )
    return float(np.partition(of_true, rank - 1)[rank - 1])


def _rank(num: int, coverage: float) -> int:
    """num + 1 - ceil((num + 1) coverage), of which rounding must not make one more or less."""
    return num + 1 - math.ceil(round((num + 1) * coverage, 9))


def sets(probabilities: NDArray[np.float32], least: float) -> NDArray[np.int32]:
    """How many of the most probable classes of each row are its set: always one, though an empty set might do."""
    counts = (probabilities >= np.float32(least)).sum(axis=1)
    return np.maximum(counts, 1).astype(np.int32)


def p_values(strangeness: NDArray[np.floating], of_known: NDArray[np.floating]) -> NDArray[np.float32]:
    """How often an image like those of validation is at least as strange: in (0, 1], small for one that fits none.

    (1 + the number of validation images that are as strange or stranger) / (1 + their number): of images of their kind
    at most a share of `rate` has a value of `rate` or less.
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
