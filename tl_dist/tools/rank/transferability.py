"""Scores of how well a network's features suit a task, without training it: LogME, H-score, N-LEEP, nearest neighbours.

Each takes features [examples, features] and labels [examples] of at least two classes; greater is better. Classes
without examples are ignored.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores.neighbours import normalised

Features = NDArray[Any]
Labels = NDArray[np.int32]

RANK = 1e-12
"""eigenvalues up to this share of the largest count as 0"""
_RATIOS = np.logspace(-12, 12, 97)
"""grid for the ratio of the precisions of prior and noise, in units of the mean eigenvalue, searched before refining"""
NEAREST = 5
_ROWS_AT_ONCE = 1024
ENERGY = 0.8
COMPONENTS = 5
"""Gaussians per class in the mixture; this and ENERGY as in the paper of N-LEEP"""
EACH = 5
"""least number of examples per component of the mixture: fewer do not determine it"""


def logme(features: Features, labels: Labels) -> float:
    """Return the evidence of Bayesian linear regression, by class and example (You et al. 2021, arXiv 2102.11005).

    The model is y = features @ w + noise with y 1 for a class and 0 for the others, w ~ N(0, 1 / alpha) and noise
    ~ N(0, 1 / beta); log p(y) is maximized over alpha and beta for each class by itself. Given their ratio the best
    beta has a closed form, so the search is over one number; the paper alternates between the two.
    """
    from scipy.optimize import minimize_scalar

    wide = features.astype(np.float64)
    classes = np.unique(labels)
    targets = (labels[:, None] == classes).astype(np.float64)
    values, projected = _spectrum(wide, targets)
    unit = max(float(values.mean()), np.finfo(np.float64).tiny) if len(values) else 1.0
    num = len(labels)
    evidences = []
    for k in range(len(classes)):
        inside = projected[:, k] ** 2
        outside = max(float(targets[:, k].sum() - inside.sum()), 0.0)

        def evidence(log_ratio: float, inside: Any = inside, outside: float = outside) -> float:
            share = 1 / (1 + values / (unit * np.exp(log_ratio)))
            left = max(float(inside @ share) + outside, np.finfo(np.float64).tiny)
            return 0.5 * float(np.log(share).sum()) - num / 2 * np.log(2 * np.pi * np.e * left / num)

        grid = np.log(_RATIOS)
        best = int(np.argmax([evidence(log_ratio) for log_ratio in grid]))
        ends = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        refined = minimize_scalar(lambda x, of=evidence: -of(x), bounds=ends, method="bounded")
        evidences.append(max(evidence(grid[best]), -float(refined.fun)))
    return float(np.mean(evidences)) / num


def _spectrum(rows: Features, targets: Features) -> tuple[Features, Features]:
    """Return the nonzero eigenvalues of rows @ rows.T, and the targets projected on their eigenvectors.

    The projections are [eigenvalues, targets].
    """
    tall = len(rows) > rows.shape[1]
    values, axes = np.linalg.eigh(rows.T @ rows if tall else rows @ rows.T)
    nonzero = values > RANK * values.max(initial=0.0)
    values, axes = values[nonzero], axes[:, nonzero]
    if tall:
        return values, (axes.T @ (rows.T @ targets)) / np.sqrt(values)[:, None]
    return values, axes.T @ targets


def h_score(features: Features, labels: Labels) -> float:
    """Return the H-score with a shrunk covariance: the spread between classes relative to the spread of all examples.

    It is trace(S^-1 (1 - a) B) of Ibrahim et al. 2021 (arXiv 2110.06893): B is the covariance of the class means, S
    the covariance of all examples, shrunk by the share `a` toward its mean variance (Ledoit and Wolf 2004, Journal of
    Multivariate Analysis 88).
    """
    rows, values, axes = _principal_axes(features)
    num, width = rows.shape
    variance = float(values.mean())
    if variance <= 0:
        return 0.0
    squared = float((values**2).sum())
    noise = (float(((rows**2).sum(axis=1) ** 2).sum()) / num - squared) / num
    distance = squared - width * variance**2
    shrinkage = min(noise / distance, 1.0) if distance > 0 else 1.0
    shrunk = (1 - shrinkage) * values + shrinkage * variance
    nonzero = shrunk > RANK * shrunk.max()
    classes, counts = np.unique(labels, return_counts=True)
    means = np.stack([rows[labels == k].mean(axis=0) for k in classes]) @ axes[:, nonzero]
    between = (counts / num) @ means**2
    return (1 - shrinkage) * float((between / shrunk[nonzero]).sum())


def nleep(features: Features, labels: Labels, *, seed: int = 0) -> float:
    """Return the mean log likelihood of the labels, given the components of a mixture fitted to the features.

    N-LEEP of Li et al. 2021 (arXiv 2011.11200) needs no source head: principal components with 80 % of the variance,
    five Gaussians per class instead of the source classes, then LEEP (Nguyen et al. 2020, arXiv 2002.12462). The
    covariances are diagonal, so that thousands of features can be fitted to few examples.
    """
    from sklearn.mixture import GaussianMixture

    reduced = _principal(features)
    num_components = max(1, min(COMPONENTS * len(np.unique(labels)), len(labels) // EACH))
    mixture = GaussianMixture(
        num_components, covariance_type="diag", random_state=seed, max_iter=50, reg_covar=1e-4, tol=1e-2
    )
    with warnings.catch_warnings():
        # Stopping before convergence moves the score by less than another seed does.
        warnings.simplefilter("ignore")
        mixture.fit(reduced)
    return leep(mixture.predict_proba(reduced), labels)


def leep(parts: Features, labels: Labels) -> float:
    """Return the mean log of sum_z P(y | z) P(z | x); `parts` [examples, z] is P(z | x), and P(y | z) is counted."""
    targets = (labels[:, None] == np.unique(labels)).astype(np.float64)
    joint = targets.T @ parts  # [classes, z]
    conditional = joint / np.maximum(joint.sum(axis=0), np.finfo(np.float64).tiny)
    likelihood = ((targets @ conditional) * parts).sum(axis=1)
    return float(np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean())


def _principal_axes(features: Features) -> tuple[Features, Features, Features]:
    """Return the centred rows, their variances along the principal axes, largest first, and these axes."""
    rows = features.astype(np.float64)
    rows -= rows.mean(axis=0)
    values, axes = np.linalg.eigh(rows.T @ rows / len(rows))
    return rows, np.maximum(values[::-1], 0.0), axes[:, ::-1]


def _principal(features: Features) -> Features:
    """Project on the first principal axes that hold `ENERGY` of the variance, in units of the largest deviation."""
    rows, values, axes = _principal_axes(features)
    if values[0] <= 0:
        return np.zeros((len(rows), 1))
    num = int(np.searchsorted(values.cumsum(), ENERGY * values.sum())) + 1
    return rows @ axes[:, :num] / np.sqrt(values[0])


def nearest(
    features: Features, labels: Labels, groups: Sequence[str] | None = None, *, num: int = NEAREST
) -> float:
    """Return the leave-one-out accuracy of a vote of the `num` nearest neighbours by cosine similarity.

    Each neighbour's vote is weighted by its similarity; examples of the same group do not vote. A tie goes to the
    class with the lower number.
    """
    rows = normalised(features)
    classes, numbers = np.unique(labels, return_inverse=True)
    group = np.arange(len(rows)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    num, right = min(num, len(rows) - 1), 0
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        block = np.arange(first, min(first + _ROWS_AT_ONCE, len(rows)))
        near = (rows[block] @ rows.T).astype(np.float64) + 1  # at least 0, so that every neighbour has a vote
        near[group[block][:, None] == group] = -1
        neighbours = np.argpartition(near, len(rows) - num, axis=1)[:, len(rows) - num :]
        weight = np.maximum(np.take_along_axis(near, neighbours, axis=1), 0)
        votes = np.zeros((len(block), len(classes)))
        np.add.at(votes, (np.arange(len(block))[:, None], numbers[neighbours]), weight)
        right += int((votes.argmax(axis=1) == numbers[block]).sum())
    return right / len(rows)
