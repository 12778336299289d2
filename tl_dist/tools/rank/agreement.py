"""Whether a score of networks foretold how well they do once trained, and whether a plain baseline did as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 500

Values = Sequence[float | None]
"""of a score, or of a baseline, by candidate; None where it is not known"""


@dataclass(frozen=True)
class Agreement:
    """How a score orders the candidates, beside what training made of them."""

    name: str
    num: int
    """candidates that were trained"""
    kendall: float | None
    """Kendall's tau, weighted: exchanges near the top count more; None of fewer than three, or of equal values"""
    spearman: float | None
    regret: float
    """accuracy lost by training the first by this score in place of the best; of several first ones, their mean"""
    error: float | None = None
    """the standard error of the regret: with other test images and other seeds; None where it is not known"""

    @property
    def quality(self) -> tuple[float, float]:
        """By which two are compared, the greater the better: first the regret, then the order of all."""
        return -round(self.regret, 9), -np.inf if self.kendall is None else round(self.kendall, 9)


def agreement(
    name: str, values: Values, trained: Values, resampled: NDArray[np.float64] | None = None
) -> Agreement | None:
    """None where fewer than two candidates were trained, or a value of one of these is not known.

    resampled [draws, candidates]: what `resample` makes of those that were trained.
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
    """Accuracies [draws, candidates] by bootstrap: of test images, the same for all, and of the runs of each candidate.

    right: for each candidate [runs, images], whether each of its runs is right about each image. of: the number of the
    group of each image, where these are drawn as a whole.
    """
    rng, num = np.random.default_rng(seed), right[0].shape[1] if of is None else int(of.max()) + 1
    drawn = np.empty((RESAMPLES, len(right)))
    for draw in drawn:
        counts = np.bincount(rng.integers(num, size=num), minlength=num)
        counts = counts if of is None else counts[of]
        for k, runs in enumerate(right):
            draw[k] = (runs @ counts)[rng.integers(len(runs), size=len(runs))].mean() / counts.sum()
    return drawn


def verdict(scores: Sequence[Agreement], baselines: Sequence[Agreement]) -> Mapping[str, bool]:
    """Of each score whether it beats the best plain baseline: a smaller regret, or with the same a better order."""
    best = best_of(baselines)
    return {one.name: best is None or one.quality > best.quality for one in scores}


def best_of(baselines: Sequence[Agreement]) -> Agreement | None:
    """The one to beat; None where no baseline is known of all candidates."""
    return max(baselines, key=lambda one: one.quality, default=None)
