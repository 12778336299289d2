"""Calibrated probabilities: one temperature for all logits (Guo et al. 2017, arXiv 1706.04599).

It is fitted on the validation split alone and stored in RUN/calibration.npz, with what conformal sets need from the
same examples. The file is bound to the digest of one checkpoint and is not used for any other.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores import curves, figures
from tl_dist.scores.arrays import Arrays
from tl_dist.scores.clusters import Numbers
from tl_dist.scores.figures import Labels

Logits = NDArray[np.float32]
FILE = "calibration.npz"
MOST = 100.0  # the temperature lies between 1 / MOST and MOST


@dataclass(frozen=True, eq=False)
class Calibration(Arrays):
    """The calibration of a checkpoint on its validation split."""

    WHAT = "calibration"
    FIX = "calibrate the run again: tl-dist calibrate RUN; or remove the file."

    step: int
    sha256: str  # of the checkpoint
    views: Annotated[NDArray[np.str_], "U views?"]  # over which the logits are averaged
    temperature: float
    labels: Annotated[NDArray[np.int32], "iu examples"]
    of_true: Annotated[NDArray[np.floating], "f examples"]
    """the calibrated probability of the true class of each validation example"""
    types: Annotated[NDArray[np.str_], "U examples?"]
    """of each example, or its group where the data set has no types; empty where it has neither"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.temperature < np.inf and ((self.of_true >= 0) & (self.of_true <= 1)).all()):
            raise ValueError("it has no temperature or no probabilities")


def load(run: Path) -> Calibration | None:
    """Load the calibration of a run; None if it was never calibrated. Refuses (65) a damaged file."""
    return Calibration.load(run / FILE) if os.path.lexists(run / FILE) else None


def of_checkpoint(run: Path, sha256: str, views: Sequence[str] | None = None) -> Calibration | None:
    """Load the calibration of this very checkpoint for these views; for any views, if `views` is None."""
    calibration = load(run)
    if calibration is None or calibration.sha256 != sha256:
        return None
    return calibration if views is None or [*views] == [*calibration.views] else None


def fitted(labels: NDArray[np.int32], logits: NDArray[np.float32]) -> float:
    """Fit the temperature with the least log loss: where its derivative with respect to 1 / temperature is 0.

    The loss is convex in 1 / temperature, so there is one. If all examples are right the temperature is 1: nothing then
    shows how confident the network may be, and the least loss would be that of certainty.
    """
    from scipy.optimize import brentq

    def slope(inverse: float) -> float:
        total = 0.0
        for rows in figures.blocks(*logits.shape):
            wide = logits[rows].astype(np.float64)
            shares = figures.softmax(wide * inverse)
            total += float(((shares * wide).sum(axis=1) - wide[np.arange(len(wide)), labels[rows]]).sum())
        return total / len(labels)

    if (logits[np.arange(len(labels)), labels] == logits.max(axis=1)).all():
        return 1.0
    if slope(1 / MOST) >= 0:  # no better than a guess, however flat
        return MOST
    if slope(MOST) <= 0:
        return 1 / MOST
    return 1 / float(brentq(slope, 1 / MOST, MOST, xtol=1e-12, rtol=1e-10))


def quality(labels: Labels, logits: Logits, temperature: float, of: Numbers | None = None) -> dict[str, Any]:
    """Return log loss, expected calibration error and the bins of a reliability diagram, at a temperature."""
    predicted = figures.confidences(labels, figures.Softmax(logits, temperature))
    if not np.isfinite(predicted.confidence).all():
        return {"log_loss": None, "ece": None, "bins": []}
    return {
        "log_loss": figures.mean_surprise(predicted.of_true),
        "ece": figures.calibration_error(predicted.confidence, predicted.hits),
        "bins": [row._asdict() for row in curves.reliability(predicted.confidence, predicted.hits, of)],
    }


def before_and_after(
    labels: Labels, logits: Logits, temperature: float, of: Numbers | None = None, num_fitted: int = 0
) -> dict[str, Any]:
    """Return the `quality` of a split before and after calibration.

    The temperature was fitted to `num_fitted` of its examples, which anything that shows this must say.
    """
    return {
        "temperature": temperature,
        "num_fitted": num_fitted,
        "before": quality(labels, logits, 1.0, of),
        "after": quality(labels, logits, temperature, of),
    }
