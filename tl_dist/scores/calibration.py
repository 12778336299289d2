"""Probabilities that can be believed: one temperature for all logits (Guo et al. 2017, arXiv 1706.04599).

It is fitted on the validation split alone and kept in RUN/calibration.npz, beside what conformal sets need of the same
examples. The file is bound to the digest of one checkpoint: another one has no calibration. No pickled object is ever
written or read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.files.npz import load_npz
from tl_dist.scores import curves, figures
from tl_dist.scores.clusters import Numbers
from tl_dist.scores.figures import Labels

Logits = NDArray[np.float32]
FILE = "calibration.npz"
MOST = 100.0
"""the temperature lies between 1 / MOST and MOST"""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was learned of a checkpoint on its validation split."""

    step: int
    sha256: str
    """of the checkpoint"""
    views: Sequence[str]
    """over which the logits are a mean"""
    temperature: float
    labels: NDArray[np.int32]
    of_true: NDArray[np.float64]
    """the calibrated probability of the true class of each validation example"""
    types: NDArray[np.str_]
    """of each example, or its group where the data set has no types; empty where it has neither"""

    def __post_init__(self) -> None:
        num = len(self.labels)
        right = (
            0 < self.temperature < np.inf
            and self.labels.shape == self.of_true.shape == (num,)
            and self.labels.dtype.kind in "iu"
            and self.of_true.dtype.kind == "f"
            and self.types.shape in ((num,), (0,))
            and self.types.dtype.kind == "U"
            and num > 0
            and bool(((self.of_true >= 0) & (self.of_true <= 1)).all())
        )
        if not right:
            raise ValueError("its arrays are not those of a calibration")

    def arrays(self) -> dict[str, Any]:
        """For `predictions.save`."""
        return {**vars(self), "views": np.array(list(self.views), np.str_)}


def load(run: Path) -> Calibration | None:
    """That of a run; None where it was never calibrated. Refuses (65) a damaged file."""
    path = run / FILE
    if not os.path.lexists(path):
        return None
    return load_npz(
        path,
        lambda found: Calibration(
            int(found["step"]),
            str(found["sha256"]),
            [str(name) for name in found["views"]],
            float(found["temperature"]),
            found["labels"],
            found["of_true"],
            found["types"],
        ),
        what="calibration",
        fix="calibrate the run again: tl-dist calibrate RUN; or remove the file.",
    )


def of_checkpoint(run: Path, sha256: str, views: Sequence[str] | None = None) -> Calibration | None:
    """That of this very checkpoint, evaluated as a mean over these views; None: in whichever."""
    found = load(run)
    if found is None or found.sha256 != sha256:
        return None
    return found if views is None or [*views] == [*found.views] else None


def fitted(labels: NDArray[np.int32], logits: NDArray[np.float32]) -> float:
    """The temperature at which these examples have the least log loss: where its derivative by 1 / temperature is 0.

    The loss is convex in 1 / temperature, so there is one. It stays 1 where all examples are right: nothing shows then
    how sure the network may be, and the least loss would be that of certainty.
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
    least, most = 1 / MOST, MOST
    if slope(least) >= 0:  # no better than a guess, however flat
        return MOST
    if slope(most) <= 0:
        return 1 / MOST
    return 1 / float(brentq(slope, least, most, xtol=1e-12, rtol=1e-10))


def quality(labels: Labels, logits: Logits, temperature: float, of: Numbers | None = None) -> dict[str, Any]:
    """Log loss, expected calibration error and the bins of a reliability diagram, at a temperature."""
    found = figures.confidences(labels, figures.Softmax(logits, temperature))
    if not np.isfinite(found.confidence).all():
        return {"log_loss": None, "ece": None, "bins": []}
    return {
        "log_loss": figures.mean_surprise(found.of_true),
        "ece": figures.calibration_error(found.confidence, found.hits),
        "bins": [one._asdict() for one in curves.reliability(found.confidence, found.hits, of)],
    }


def before_and_after(
    labels: Labels,
    logits: Logits,
    temperature: float,
    of: Numbers | None = None,
    num_fitted: int = 0,
) -> dict[str, Any]:
    """`quality` of a split as the network gives it, and calibrated.

    To `num_fitted` of its examples the temperature was fitted: whoever shows this says so.
    """
    return {
        "temperature": temperature,
        "num_fitted": num_fitted,
        "before": quality(labels, logits, 1.0, of),
        "after": quality(labels, logits, temperature, of),
    }
