"""How far the numbers of a checkpoint were from the truth on its validation split: RUN/residuals.npz.

`tl-dist calibrate` keeps them, and `tl-dist predict --coverage` makes intervals of them (`conformal.half_widths`).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores.arrays import Arrays

FILE = "residuals.npz"


@dataclass(frozen=True, eq=False)
class Residuals(Arrays):
    """The distances of a checkpoint's numbers from the truth."""

    WHAT = "residuals"
    FIX = "calibrate the run again: tl-dist calibrate RUN; or remove the file."

    step: int
    sha256: str  # of the checkpoint
    errors: Annotated[NDArray[np.floating], "f examples targets"]
    """absolute, in the units of the data"""
    types: Annotated[NDArray[np.str_], "U examples?"]
    """of each example, or its group where the data set has no types; empty where it has neither"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.errors >= 0).all():
            raise ValueError("a distance is negative or no number")


def of_checkpoint(run: Path, sha256: str) -> Residuals | None:
    """Load the residuals of this very checkpoint; None if they were never kept. Refuses (65) a damaged file."""
    if not os.path.lexists(run / FILE):
        return None
    residuals = Residuals.load(run / FILE)
    return residuals if residuals.sha256 == sha256 else None
