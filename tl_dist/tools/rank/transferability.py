"""Scores of how well a network's features suit a task, without training it: LogME, H-score, N-LEEP, nearest neighbours.

Each takes features [examples, features] and labels [examples] of at least two classes; greater is better. Classes
without examples are ignored.
"""

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
_LOG_RATIOS = np.log(np.logspace(-12, 12, 97))
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

    targets = (labels[:, None] == np.unique(labels)).astype(np.float64)
    values, projected = _spectrum(features.astype(np.float64), targets)
    unit = max(float(values.mean()), np.finfo(np.float64).tiny) if len(values) else 1.0
    num = len(labels)
    evidences = []
    for k in range(targets.shape[1]):
        inside = projected[:, k] ** 2
        outside = max(float(targets[:, k].sum() - inside.sum()), 0.0)

        def evidence(log_ratio: float, inside: Any = inside, outside: float = outside) -> float:
            share = 1 / (1 + values / (unit * np.exp(log_ratio)))
            left = max(float(inside @ share) + outside, np.finfo(np.float64).tiny)
            return 0.5 * float(np.log(share).sum()) - num / 2 * np.log(2 * np.pi * np.e * left / num)

        lost = [-evidence(log_ratio) for log_ratio in _LOG_RATIOS]
        best = int(np.argmin(lost))
        ends = _LOG_RATIOS[max(best - 1, 0)], _LOG_RATIOS[min(best + 1, len(lost) - 1)]
        refined = minimize_scalar(lambda x, of=evidence: -of(x), bounds=ends, method="bounded")
        evidences.append(-min(lost[best], float(refined.fun)))
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
    from sklearn.covariance import ledoit_wolf

    rows = features.astype(np.float64)
    rows -= rows.mean(axis=0)
    covariance, shrinkage = ledoit_wolf(rows, assume_centered=True)
    classes, counts = np.unique(labels, return_counts=True)
    means = np.stack([rows[labels == k].mean(axis=0) for k in classes])
    inverse = np.linalg.pinv(covariance, rcond=RANK, hermitian=True)
    between = counts / len(rows) @ ((means @ inverse) * means)
    return float((1 - shrinkage) * between.sum())


def nleep(features: Features, labels: Labels, *, seed: int = 0) -> float:
    """Return the mean log likelihood of the labels, given the components of a mixture fitted to the features.

    N-LEEP of Li et al. 2021 (arXiv 2011.11200) needs no source head: principal components with 80 % of the variance,
    five Gaussians per class instead of the source classes, then LEEP (Nguyen et al. 2020, arXiv 2002.12462). The
    covariances are diagonal, so that thousands of features can be fitted to few examples.
    """
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    rows = features.astype(np.float64)
    reduced = np.zeros((len(rows), 1))
    if np.ptp(rows, axis=0).any():
        reduced = PCA(ENERGY, svd_solver="covariance_eigh").fit_transform(rows)
        reduced /= reduced[:, 0].std()
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


def nearest(features: Features, labels: Labels, groups: Sequence[str] | None = None, *, num: int = NEAREST) -> float:
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
