"""What corruptions do to a run: accuracy against severity, mean corruption error, and a paired test of two runs.

Kept in RUN/predictions/SPLIT_corruptions.npz; no pickled object is ever written or read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.files.npz import load_npz
from tl_dist.scores import clusters

GEOMETRY = ("shift", "rotate", "resize")
"""are shown, and belong to no mean corruption error"""


@dataclass(frozen=True, eq=False)
class Hits:
    """Which examples a run is right about."""

    ids: NDArray[np.str_]
    names: NDArray[np.str_]
    """of the corruptions"""
    severities: NDArray[np.int64]
    clean: NDArray[np.bool_]
    """[examples]"""
    right: NDArray[np.bool_]
    """[corruptions, severities, examples]"""
    step: int
    image_size: int
    groups: NDArray[np.str_] = field(default_factory=lambda: np.array([], np.str_))
    """of the examples, as `Predictions.groups`"""

    def __post_init__(self) -> None:
        num = len(self.ids)
        shapes = (self.clean.shape, self.right.shape)
        arrays = (self.ids, self.names, self.groups, self.clean, self.right)
        if (
            not num
            or shapes != ((num,), (len(self.names), len(self.severities), num))
            or [array.dtype.kind for array in arrays] != [*"UUUbb"]
            or self.groups.shape not in ((num,), (0,))
        ):
            raise ValueError("its arrays are not those of an evaluation under corruptions")

    @property
    def common(self) -> NDArray[np.bool_]:
        """Which of the corruptions the mean corruption error is of."""
        return ~np.isin(self.names, GEOMETRY)


def file_of(run: Path, split: str) -> Path:
    """Where a run keeps it."""
    return run / "predictions" / f"{split}_corruptions.npz"


def load(path: Path) -> Hits:
    """Refuses (65) what is not there or another file."""

    def made(found: dict[str, Any]) -> Hits:
        sizes = {key: int(found.pop(key)) for key in ("step", "image_size")}
        return Hits(**found, **sizes)  # type: ignore[arg-type]

    return load_npz(
        path, made, what="evaluation under corruptions", fix="make it: tl-dist eval RUN --corruptions all."
    )


def record(found: Hits) -> dict[str, Any]:
    """Accuracies as JSON. `mean_corruption_error`: the mean error over corruptions and severities, not normalized.

    `relative`: how much of that the corruptions add to the error on images as they are. Hendrycks and Dietterich divide
    both by those of a reference network; of the first, `compared` gives that as `mce`.
    """
    accuracy = found.right.mean(axis=2)
    errors = 1 - accuracy[found.common]
    clean = float(found.clean.mean())
    return {
        "event": "corruptions",
        "step": found.step,
        "num_examples": len(found.ids),
        "image_size": found.image_size,
        "severities": found.severities.tolist(),
        "clean": clean,
        "accuracy": {str(name): row.tolist() for name, row in zip(found.names, accuracy, strict=True)},
        "mean_corruption_error": float(errors.mean()) if errors.size else None,
        "relative": float(errors.mean() - (1 - clean)) if errors.size else None,
    }


def compared(first: Hits, second: Hits, *, resamples: int = 2_000, seed: int = 0) -> dict[str, Any]:
    """Two runs on the same corrupted images: errors by corruption, and whether the means differ.

    `ratios`: the corruption errors of the second relative to the first, and `mce` their mean, as the paper normalizes
    by AlexNet; None where the first makes no error. `difference` is that of the mean errors, second less first, with
    its 95 % interval by the paired bootstrap over examples, or over their groups (`clusters.of_mean`), as `interval_by`
    says; both None where only GEOMETRY was evaluated. ValueError unless both are of the same.
    """
    a, b = np.argsort(first.ids), np.argsort(second.ids)
    same = (
        np.array_equal(first.ids[a], second.ids[b])
        and np.array_equal(first.names, second.names)
        and np.array_equal(first.severities, second.severities)
        and first.image_size == second.image_size
    )
    if not same:
        raise ValueError("other examples, corruptions, severities or sizes")
    wrong = [~first.right[:, :, a], ~second.right[:, :, b]]
    errors = [one.mean(axis=(1, 2)) for one in wrong]
    common = first.common
    ratios = [float(y / x) if x else None for x, y in zip(*errors, strict=True)]
    counted = [ratio for ratio, counts in zip(ratios, common, strict=True) if counts]
    normal = [ratio for ratio in counted if ratio is not None]
    # Of each example how many of its corrupted images only one of the runs is wrong about.
    gaps = (wrong[1][common].sum(axis=(0, 1)) - wrong[0][common].sum(axis=(0, 1), dtype=np.int64)).astype(
        np.float64
    )
    gaps /= max(1, int(common.sum()) * len(first.severities))
    of, interval = clusters.numbers(clusters.shared([(first.groups, a), (second.groups, b)])), None
    if of is not None:
        interval = clusters.of_mean(gaps, of)
    elif common.any():
        draws = np.random.default_rng(seed)
        means = [gaps[draws.integers(0, len(gaps), len(gaps))].mean() for _ in range(resamples)]
        ends = (1 - clusters.CONFIDENCE) / 2, (1 + clusters.CONFIDENCE) / 2
        interval = [float(end) for end in np.quantile(means, ends)]
    return {
        "num_examples": len(gaps),
        "names": first.names.tolist(),
        "errors": [one.tolist() for one in errors],
        "ratios": ratios,
        "mce": float(np.mean(normal)) if normal and len(normal) == len(counted) else None,
        "difference": float(gaps.mean()) if common.any() else None,
        "interval": interval if common.any() else None,
        **({} if of is None else {"interval_by": f"t over {clusters.words(of)}"}),
    }
