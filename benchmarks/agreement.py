"""Whether a score of `tl-dist rank` predicted how well networks do once trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 500

Values = Sequence[float | None]
"""of a score or a baseline, by candidate; None if unknown"""


@dataclass(frozen=True)
class Agreement:
    """How a score orders the candidates, compared with their accuracy once trained."""

    name: str
    num: int
    """trained candidates"""
    kendall: float | None
    """weighted Kendall's tau, in which exchanges near the top count more; None if fewer than three, or all equal"""
    spearman: float | None
    regret: float
    """accuracy lost by training the score's first choice instead of the best; the mean if several tie for first"""
    error: float | None = None
    """standard error of the regret over test images and seeds; None if unknown"""


def agreement(
    name: str, values: Values, trained: Values, resampled: NDArray[np.float64] | None = None
) -> Agreement | None:
    """Compare a score with the accuracies in `trained`.

    `resampled` [draws, candidates] comes from `resample` and covers the trained candidates only. Returns None if fewer
    than two candidates were trained, or the score of a trained one is unknown.
    """
    from scipy.stats import spearmanr, weightedtau

    known = [(v, t) for v, t in zip(values, trained, strict=True) if t is not None]
    if len(known) < 2 or any(v is None for v, _ in known):
        return None
    score, accuracy = np.array(known, np.float64).T
    first = score == score.max()
    regret = float(accuracy.max() - accuracy[first].mean())
    error = None
    if resampled is not None:
        error = float(np.std(resampled.max(axis=1) - resampled[:, first].mean(axis=1), ddof=1))
    if len(known) < 3 or np.ptp(score) == 0 or np.ptp(accuracy) == 0:
        return Agreement(name, len(known), None, None, regret, error)
    kendall, spearman = weightedtau(score, accuracy).statistic, spearmanr(score, accuracy).statistic
    return Agreement(name, len(known), float(kendall), float(spearman), regret, error)


def resample(
    right: Sequence[NDArray[np.bool_]], of: NDArray[np.int64] | None = None, *, seed: int = 0
) -> NDArray[np.float64]:
    """Bootstrap accuracies [draws, candidates] over test images, the same for all, and over each candidate's runs.

    `right` holds for each candidate a mask [runs, images] of correct predictions. `of` is the group number of each
    image, if whole groups are to be drawn.
    """
    rng, num = np.random.default_rng(seed), right[0].shape[1] if of is None else int(of.max()) + 1
    drawn = np.empty((RESAMPLES, len(right)))
    for draw in drawn:
        counts = np.bincount(rng.integers(num, size=num), minlength=num)
        counts = counts if of is None else counts[of]
        for k, runs in enumerate(right):
            draw[k] = (runs @ counts)[rng.integers(len(runs), size=len(runs))].mean() / counts.sum()
    return drawn
