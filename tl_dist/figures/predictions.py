"""What a run said of each example: RUN/predictions/SPLIT.npz, for paired tests, ensembles and a look at the errors.

The arrays are `ids` (text), `labels` int32 [N], `probabilities` float32 [N, classes], `class_names`, `step` and
`groups` (text); no pickled object is ever written or read.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tl_dist import figures
from tl_dist.durable import open_regular, reason, write_atomically
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.state import Evaluation


@dataclass(frozen=True, eq=False)
class Predictions:
    """The probabilities of each example of a split; `step` is that of the weights."""

    ids: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: np.ndarray
    step: int
    groups: np.ndarray
    """the group of each example, empty where the dataset has none"""


def file_of(run: Path, split: str) -> Path:
    """Where a run keeps the predictions of a split."""
    return run / "predictions" / f"{split}.npz"


def save(path: Path, **arrays: Any) -> None:
    """Write arrays as one .npz: the old file or the new one, whatever happens."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> Predictions:
    """Refuses (65) what is not there or no file of predictions."""
    try:
        with open(open_regular(path), "rb") as file, np.load(file, allow_pickle=False) as found:
            return Predictions(
                found["ids"],
                found["labels"],
                found["probabilities"],
                found["class_names"],
                int(found["step"]),
                found["groups"],
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Refusal(
            f"{path} holds no predictions ({reason(error)}).",
            fix="name a run that has ended, or evaluate it: tl-dist eval RUN --split SPLIT.",
            code=ExitCode.DATA,
        ) from error


def with_figures(
    result: Evaluation,
    run: Path,
    *,
    step: int,
    ids: Sequence[str],
    labels: np.ndarray,
    class_names: Sequence[str],
    groups: Sequence[str] = (),
) -> Evaluation:
    """The evaluation with all its figures; what it predicted is kept in the run.

    For two classes and a validation split, the threshold is chosen on it, and reported for the other splits.
    """
    if result.logits is None:
        return result
    probabilities = figures.softmax(result.logits)
    found = figures.figures(labels, probabilities)
    if len(class_names) == 2 and np.isfinite(probabilities).all():
        if result.split == "validation":
            found["threshold"] = figures.best_threshold(labels, probabilities)
        elif (threshold := _threshold(run, step)) is not None:
            found["threshold"] = threshold
            found["accuracy_at_threshold"] = figures.accuracy_at(labels, probabilities, threshold)
    save(
        file_of(run, result.split),
        ids=np.array(ids),
        labels=labels,
        probabilities=probabilities.astype(np.float32),
        class_names=np.array(class_names),
        step=step,
        groups=np.array(groups, np.str_),
    )
    return dataclasses.replace(result, figures=found)


def _threshold(run: Path, step: int) -> float | None:
    """The one chosen on the validation examples by the same weights."""
    path = file_of(run, "validation")
    if not path.exists():
        return None
    chosen = load(path)
    return figures.best_threshold(chosen.labels, chosen.probabilities) if chosen.step == step else None
