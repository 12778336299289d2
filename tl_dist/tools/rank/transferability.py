"""How well a network's features suit a task, without training: LogME, shrunk H-score, N-LEEP, nearest neighbours.

Each takes features [examples, features] and labels [examples], and the greater the better. A class that no example has
counts for nothing. Two classes at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores.neighbours import normalised

Features = NDArray[Any]
Labels = NDArray[np.int32]

RANK = 1e-12
"""an eigenvalue is 0 that is no more than this share of the largest"""
_RATIOS = np.logspace(-12, 12, 97)
"""of the precisions of prior and noise, in units of the mean eigenvalue: where the evidence is looked at first"""
NEAREST = 5
_ROWS_AT_ONCE = 1024
ENERGY = 0.8
COMPONENTS = 5
"""of the mixture, for each class; both as in the paper of N-LEEP"""
EACH = 5
"""examples at least for each component of the mixture: of fewer it knows nothing"""


def logme(features: Features, labels: Labels) -> float:
    """The evidence of Bayesian linear regression, by class and example (You et al. 2021, arXiv 2102.11005).

    Of y = features @ w + noise, y being 1 for a class and 0 for the others, w ~ N(0, 1 / alpha) and the noise
    N(0, 1 / beta): the greatest log p(y) over alpha and beta, for each class by itself. For a given ratio of the two
    the best beta is known, so one number is searched for; the paper goes back and forth between the two.
    """
    from scipy.optimize import minimize_scalar

    wide = features.astype(np.float64)
    classes = np.unique(labels)
    targets = (labels[:, None] == classes).astype(np.float64)
    values, projected = _spectrum(wide, targets)
    unit = max(float(values.mean()), np.finfo(np.float64).tiny) if len(values) else 1.0
    num = len(labels)
    found = []
    for k in range(len(classes)):
        inside = projected[:, k] ** 2
        outside = max(float(targets[:, k].sum() - inside.sum()), 0.0)

        def evidence(log_ratio: float, inside: Any = inside, outside: float = outside) -> float:
            share = 1 / (1 + values / (unit * np.exp(log_ratio)))
            left = max(float(inside @ share) + outside, np.finfo(np.float64).tiny)
            return 0.5 * float(np.log(share).sum()) - num / 2 * np.log(2 * np.pi * np.e * left / num)

        grid = np.log(_RATIOS)
        best = int(np.argmax([evidence(at) for at in grid]))
        ends = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        refined = minimize_scalar(lambda at, of=evidence: -of(at), bounds=ends, method="bounded")
        found.append(max(evidence(grid[best]), -float(refined.fun)))
    return float(np.mean(found)) / num


def _spectrum(rows: Features, targets: Features) -> tuple[Features, Features]:
    """Eigenvalues of rows @ rows.T that are not 0, and the targets along their eigenvectors [eigenvalues, targets]."""
    tall = len(rows) > rows.shape[1]
    values, axes = np.linalg.eigh(rows.T @ rows if tall else rows @ rows.T)
    kept = values > RANK * values.max(initial=0.0)
    values, axes = values[kept], axes[:, kept]
    if tall:
        return values, (axes.T @ (rows.T @ targets)) / np.sqrt(values)[:, None]
    return values, axes.T @ targets


def h_score(features: Features, labels: Labels) -> float:
    """How far apart classes are, beside the spread of all: the H-score with a shrunk covariance.

    trace(S^-1 (1 - a) B) of Ibrahim et al. 2021 (arXiv 2110.06893): B is the covariance of the means of the classes, S
    that of all examples, shrunk by a share `a` toward its mean variance (Ledoit and Wolf 2004, Journal of Multivariate
    Analysis 88).
    """
    rows, values, axes = _principal_axes(features)
    num, width = rows.shape
    variance = float(values.mean())
    if variance <= 0:
        return 0.0
    squared = float((values**2).sum())
    noise = (float(((rows**2).sum(axis=1) ** 2).sum()) / num - squared) / num
    away = squared - width * variance**2
    shrinkage = min(noise / away, 1.0) if away > 0 else 1.0
    shrunk = (1 - shrinkage) * values + shrinkage * variance
    kept = shrunk > RANK * shrunk.max()
    classes, counts = np.unique(labels, return_counts=True)
    means = np.stack([rows[labels == k].mean(axis=0) for k in classes]) @ axes[:, kept]
    between = (counts / num) @ means**2
    return (1 - shrinkage) * float((between / shrunk[kept]).sum())


def nleep(features: Features, labels: Labels, *, seed: int = 0) -> float:
    """The mean log likelihood of the labels, given the parts of a mixture that the features fall into.

    N-LEEP of Li et al. 2021 (arXiv 2011.11200), which asks for no source head: principal components with 80 % of the
    variance, five Gaussians for each class in place of the source's classes, then LEEP (Nguyen et al. 2020, arXiv
    2002.12462). The Gaussians are along the axes, which thousands of features and few examples allow.
    """
    from sklearn.mixture import GaussianMixture

    reduced = _principal(features)
    num_components = max(1, min(COMPONENTS * len(np.unique(labels)), len(labels) // EACH))
    mixture = GaussianMixture(
        num_components, covariance_type="diag", random_state=seed, max_iter=50, reg_covar=1e-4, tol=1e-2
    )
    parts = _fitted(mixture, reduced).predict_proba(reduced)
    return leep(parts, labels)


def leep(parts: Features, labels: Labels) -> float:
    """Mean log of the sum over z of P(y | z) P(z | x); `parts` [examples, z] are P(z | x), and P(y | z) is counted."""
    targets = (labels[:, None] == np.unique(labels)).astype(np.float64)
    together = targets.T @ parts  # [classes, z]
    given = together / np.maximum(together.sum(axis=0), np.finfo(np.float64).tiny)
    likelihood = ((targets @ given) * parts).sum(axis=1)
    return float(np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean())


def _principal_axes(features: Features) -> tuple[Features, Features, Features]:
    """The rows around their mean, variances along their principal axes, the largest first, and these axes."""
    rows = features.astype(np.float64)
    rows -= rows.mean(axis=0)
    values, axes = np.linalg.eigh(rows.T @ rows / len(rows))
    return rows, np.maximum(values[::-1], 0.0), axes[:, ::-1]


def _principal(features: Features) -> Features:
    """Along the first principal axes that have `ENERGY` of the variance, in units of the largest deviation."""
    rows, values, axes = _principal_axes(features)
    if values[0] <= 0:
        return np.zeros((len(rows), 1))
    num = int(np.searchsorted(values.cumsum(), ENERGY * values.sum())) + 1
    return rows @ axes[:, :num] / np.sqrt(values[0])


def _fitted(mixture: Any, rows: Features) -> Any:
    """The mixture of these rows; that it has not wholly converged moves the score by less than its seed does."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mixture.fit(rows)


def nearest(
    features: Features, labels: Labels, groups: Sequence[str] | None = None, *, num: int = NEAREST
) -> float:
    """Share of the examples whose `num` nearest others, by the cosine, are mostly of their class (leave one out).

    Each votes by how near it is; other examples of the same group do not vote. A tie goes to the class with the lower
    number.
    """
    rows = normalised(features)
    classes, numbers = np.unique(labels, return_inverse=True)
    group = np.arange(len(rows)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    num, right = min(num, len(rows) - 1), 0
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        mine = np.arange(first, min(first + _ROWS_AT_ONCE, len(rows)))
        near = (rows[mine] @ rows.T).astype(np.float64) + 1  # 0 and more, so that every neighbour has a vote
        near[group[mine][:, None] == group] = -1
        those = np.argpartition(near, len(rows) - num, axis=1)[:, len(rows) - num :]
        weight = np.maximum(np.take_along_axis(near, those, axis=1), 0)
        votes = np.zeros((len(mine), len(classes)))
        np.add.at(votes, (np.arange(len(mine))[:, None], numbers[those]), weight)
        right += int((votes.argmax(axis=1) == numbers[mine]).sum())
    return right / len(rows)
