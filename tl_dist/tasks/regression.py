"""Numbers for each image, such as an age or a share; answers are in the units of the data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import clusters
from tl_dist.scores.decision import Decision

MAIN = "rmse"
WORDS = {
    "hub": "image-regression",
    "model": "A network that estimates {num} numbers from an image",
    "output": "each number, in the units of the data",
    "uses": "To estimate the numbers above for images like those that it was trained on.",
}
_AGREE = 0.01
"""standard deviations of an answer within which two models say the same"""

Values = NDArray[np.floating]  # [images, targets]
Weights = NDArray[np.float64]  # [samples, images]: how often each sample has each image


def check(class_names: Sequence[str], grades: Sequence[str], truth: NDArray[Any]) -> None:
    """Refuse (65) a data set with a class for each image, and a target that never varies."""
    if truth.ndim < 2:
        what = "the data set has a class for each image, and task 'regression' needs numbers."
        raise Refusal(what, fix="write 'task: classification', or name the columns: data.target.", code=ExitCode.DATA)
    for name, column in zip(class_names, truth.T, strict=True):
        if (column == column[0]).all():
            what = f"target '{name}' is {column[0]:g} in every training example, so there is nothing to learn."
            raise Refusal(what, fix="leave it out of data.target.", code=ExitCode.DATA)


def remarks(class_names: Sequence[str]) -> list[str]:
    """Return nothing: numbers were asked for."""
    return []


def answers(outputs: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the outputs, which are in the units of the data."""
    return outputs.astype(np.float64)


def given(answers: Values, rule: Decision | None) -> NDArray[np.bool_]:
    """Return nothing: numbers are no labels."""
    return np.empty(0, np.bool_)


def entries(names: Sequence[str], answers: Values, rule: Decision | None) -> list[dict[str, Any]]:
    """Return the numbers of each image by name."""
    return [{"values": dict(zip(names, row.tolist(), strict=True))} for row in answers]


def agree(expected: Values, exported: Values) -> NDArray[np.bool_]:
    """Return for which images all numbers are within a hundredth of their standard deviation over these images."""
    return np.asarray((np.abs(exported - expected) <= _AGREE * expected.std(axis=0) + 1e-9).all(axis=1))


def loss(truth: Values, values: Values, weights: NDArray[np.float64] | None = None) -> float:
    """Return the squared error in variances of each target, mean over targets and, by `weights`, over images."""
    variance = np.maximum(np.var(truth.astype(np.float64), axis=0), np.finfo(np.float64).tiny)
    return float(np.average(((values - truth) ** 2 / variance).mean(axis=1), weights=weights))


def figures(truth: Values, values: Values, groups: clusters.Groups = ()) -> dict[str, Any]:
    """Return the figures of images by name, means over the targets, and `targets` with those of each.

    Root mean squared and mean absolute error in the units of the data, the coefficient of determination and Spearman's
    rank correlation, undefined where a target or its answers never vary. Intervals are percentiles of a bootstrap over
    images, or over groups where there are some.
    """
    finite, of = bool(np.isfinite(values).all()), clusters.numbers(groups)
    whole = _measures(truth, values, np.ones((1, len(truth))))
    own: dict[str, Any] = {"main": MAIN}
    own |= {name: _number(each[0].mean()) if finite else None for name, each in whole.items()}
    samples = clusters.resampled(len(truth), of, truth.shape[1]) if finite else ()
    if parts := [_measures(truth, values, weights) for weights in samples]:
        own |= {f"{name}_interval": clusters.bounds([part[name].mean(axis=1) for part in parts]) for name in whole}
    own["targets"] = [
        {name: _number(each[0, k]) if finite else None for name, each in whole.items()} for k in range(truth.shape[1])
    ]
    return own


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _measures(truth: Values, values: Values, weights: Weights) -> dict[str, NDArray[np.float64]]:
    """Return each figure of each sample and target, [samples, targets]."""
    num = weights.sum(axis=1, keepdims=True)
    centred = truth.astype(np.float64) - truth.mean(axis=0, dtype=np.float64)
    errors = values.astype(np.float64) - truth
    squared = weights @ errors**2 / num
    variance = weights @ centred**2 / num - (weights @ centred / num) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "rmse": np.sqrt(squared),
            "mae": weights @ np.abs(errors) / num,
            "r2": np.where(variance > 0, 1 - squared / variance, np.nan),
            "spearman": np.stack(
                [
                    _correlation(_ranks(target, weights), _ranks(answer, weights), weights, num)
                    for target, answer in zip(truth.T, values.T, strict=True)
                ],
                axis=1,
            ),
        }


def _ranks(column: NDArray[np.floating], weights: Weights) -> NDArray[np.float64]:
    """Return the rank of each image in each sample, [samples, images]; equal ones have the mean of their ranks."""
    order = np.argsort(column, kind="stable")
    ordered = column[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    up_to = np.cumsum(weights[:, order], axis=1)[:, ends]
    middle = (up_to + np.concatenate([np.zeros((len(weights), 1)), up_to[:, :-1]], axis=1) + 1) / 2
    ranks = np.empty_like(weights)
    ranks[:, order] = middle[:, np.searchsorted(ends, np.arange(len(column)))]
    return ranks


def _correlation(
    first: NDArray[np.float64], second: NDArray[np.float64], weights: Weights, num: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the correlation of each sample, [samples]; NaN where one of both never varies."""
    a, b = (ranks - (weights * ranks).sum(axis=1, keepdims=True) / num for ranks in (first, second))
    product, of_a, of_b = ((weights * x * y).sum(axis=1) for x, y in ((a, b), (a, a), (b, b)))
    return np.asarray(product / np.sqrt(of_a * of_b))
