"""Robustness of a run to corruptions: accuracy by severity, mean corruption error, and a paired test of two runs.

Stored in RUN/predictions/SPLIT_corruptions.npz.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores import clusters
from tl_dist.scores.arrays import Arrays, no_text

GEOMETRY = ("shift", "rotate", "resize")  # shown, but never part of a mean corruption error
NUM_SEVERITIES = 5
ALEXNET: Mapping[str, float] = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640,
    "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360,
    "snow": 0.866816, "frost": 0.826572, "fog": 0.819324, "brightness": 0.564592,
    "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
"""Errors of AlexNet on ImageNet-C, as a mean over its five severities, by which Hendrycks and Dietterich divide (arXiv
1903.12261, github.com/hendrycks/robustness)."""
NOT_PUBLISHED = "not comparable with published mCE, as these are not the images of ImageNet-C"
"""shown with every figure that is normalized by `ALEXNET`"""


@dataclass(frozen=True, eq=False)
class Hits(Arrays):
    """Which examples a run classifies correctly, clean and corrupted."""

    WHAT = "evaluation under corruptions"
    FIX = "make it: tl-dist eval RUN --corruptions all."

    ids: Annotated[NDArray[np.str_], "U examples"]
    names: Annotated[NDArray[np.str_], "U names"]  # of the corruptions
    severities: Annotated[NDArray[np.int64], "iu severities"]
    clean: Annotated[NDArray[np.bool_], "b examples"]
    right: Annotated[NDArray[np.bool_], "b names severities examples"]
    step: int
    image_size: int
    groups: Annotated[NDArray[np.str_], "U examples?"] = field(default_factory=no_text)
    """of the examples, as `Predictions.groups`"""

    @property
    def common(self) -> NDArray[np.bool_]:
        """Return which corruptions are part of the mean corruption error."""
        return ~np.isin(self.names, GEOMETRY)


def file_of(run: Path, split: str) -> Path:
    """Return the file of a run's evaluation under corruptions."""
    return run / "predictions" / f"{split}_corruptions.npz"


load = Hits.load


def record(hits: Hits) -> dict[str, Any]:
    """Return the accuracies as JSON, with means of the errors.

    `mean_corruption_error`: the mean error over corruptions and severities, not normalized. `relative`: the difference
    between that and the error on clean images, not normalized either. `mce_alexnet` is `normalized`.
    """
    accuracy = hits.right.mean(axis=2)
    errors = 1 - accuracy[hits.common]
    clean = float(hits.clean.mean())
    return {
        "event": "corruptions",
        "step": hits.step,
        "num_examples": len(hits.ids),
        "image_size": hits.image_size,
        "severities": hits.severities.tolist(),
        "clean": clean,
        "accuracy": {str(name): row.tolist() for name, row in zip(hits.names, accuracy, strict=True)},
        "mean_corruption_error": float(errors.mean()) if errors.size else None,
        "relative": float(errors.mean() - (1 - clean)) if errors.size else None,
        "mce_alexnet": normalized(hits),
    }


def normalized(hits: Hits) -> float | None:
    """Return the mCE of Hendrycks and Dietterich: the mean of the corruption errors, each divided by AlexNet's.

    Dividing by a network that was measured elsewhere weights the corruptions as the paper does; it does not make the
    figure comparable with ImageNet-C (`NOT_PUBLISHED`). None without all 15 corruptions at all five severities.
    """
    errors = dict(zip(hits.names.tolist(), 1 - hits.right.mean(axis=(1, 2)), strict=True))
    if len(hits.severities) < NUM_SEVERITIES or not errors.keys() >= ALEXNET.keys():
        return None
    return float(np.mean([errors[name] / error for name, error in ALEXNET.items()]))


def compared(first: Hits, second: Hits, *, resamples: int = 2_000, seed: int = 0) -> dict[str, Any]:
    """Compare two runs on the same corrupted images: errors by corruption, and whether the means differ.

    `ratios`: each corruption error of the second divided by that of the first, and `mce` their mean, as the paper
    normalizes by AlexNet; None if the first makes no error. `mce_alexnet`: each run `normalized` by AlexNet itself.
    `difference`: mean error of the second minus that of the first, with its 95 % interval by the paired bootstrap over
    examples, or over their groups (`clusters.of_mean`), which `interval_by` then states; both None if only GEOMETRY was
    evaluated. ValueError unless both are evaluations of the same examples and corruptions.
    """
    a, b = np.argsort(first.ids), np.argsort(second.ids)
    if first.image_size != second.image_size or not (
        np.array_equal(first.ids[a], second.ids[b])
        and np.array_equal(first.names, second.names)
        and np.array_equal(first.severities, second.severities)
    ):
        raise ValueError("other examples, corruptions, severities or sizes")
    wrong = [~first.right[:, :, a], ~second.right[:, :, b]]
    errors = [rows.mean(axis=(1, 2)) for rows in wrong]
    common = first.common
    ratios = [float(y / x) if x else None for x, y in zip(*errors, strict=True)]
    counted = [ratio for ratio, counts in zip(ratios, common, strict=True) if counts]
    # For each example, the number of its corrupted images that the second gets wrong, less that of the first.
    gaps = np.subtract(*(rows[common].sum(axis=(0, 1), dtype=np.float64) for rows in wrong[::-1]))
    gaps /= max(1, int(common.sum()) * len(first.severities))
    of, interval = clusters.numbers(clusters.shared([(first.groups, a), (second.groups, b)])), None
    if of is not None:
        interval = clusters.of_mean(gaps, of)
    elif common.any():
        draws = np.random.default_rng(seed)
        means = [gaps[draws.integers(0, len(gaps), len(gaps))].mean() for _ in range(resamples)]
        interval = clusters.percentiles(np.array(means))
    return {
        "num_examples": len(gaps),
        "names": first.names.tolist(),
        "errors": [row.tolist() for row in errors],
        "ratios": ratios,
        "mce": float(np.mean(np.array(counted, np.float64))) if counted and None not in counted else None,
        "difference": float(gaps.mean()) if common.any() else None,
        "interval": interval if common.any() else None,
        **({} if of is None else {"interval_by": f"t over {clusters.words(of)}"}),
        "mce_alexnet": [normalized(first), normalized(second)],
    }
