"""Scores of networks are what their definitions give, computed directly: evidence, covariances, sums, neighbours."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import kendalltau, norm
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier

from benchmarks import agreement
from tl_dist.tools.rank import transferability

SHAPES = [(60, 7, 3), (40, 100, 2), (90, 20, 5)]
"""examples, features, classes: also more features than examples"""


def drawn(num: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of unequal spread, far from 0, and classes of unequal size, of which one has no examples."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(np.arange(num) % (2 * classes - 1), classes - 1)
    centres = rng.normal(size=(classes, width))
    features = (rng.normal(size=(num, width)) + centres[labels]) * rng.uniform(0.1, 3, width) + 1
    return features.astype(np.float32), np.where(labels == classes - 1, classes, labels).astype(np.int32)


@pytest.mark.parametrize("shape", SHAPES)
def test_logme_is_the_greatest_evidence(shape: tuple[int, int, int]) -> None:
    """log N(y; 0, 1 / beta + F F' / alpha), maximised over both precisions by SciPy from several starts."""
    features, labels = drawn(*shape)
    rows, num = features.astype(np.float64), len(labels)
    evidences = []
    for k in np.unique(labels):
        y = (labels == k).astype(np.float64)

        def lost(logs: np.ndarray, y: np.ndarray = y) -> float:
            alpha, beta = np.exp(np.clip(logs, -30, 30))
            covariance = np.eye(num) / beta + rows @ rows.T / alpha
            bits = np.linalg.slogdet(covariance)[1] + y @ np.linalg.solve(covariance, y)
            return float(bits + num * np.log(2 * np.pi)) / 2

        starts = [(0.0, 0.0), (4.0, 3.0), (8.0, 0.0)]
        evidences.append(-min(minimize(lost, at, method="Nelder-Mead").fun for at in starts))
    assert transferability.logme(features, labels) == pytest.approx(np.mean(evidences) / num, abs=2e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_h_score_is_the_trace_with_scikit_learns_shrunk_covariance(shape: tuple[int, int, int]) -> None:
    features, labels = drawn(*shape)
    rows = features.astype(np.float64)
    shrunk, share = ledoit_wolf(rows)
    means = np.stack([rows[labels == label].mean(axis=0) for label in labels])
    wanted = np.trace(np.linalg.pinv(shrunk) @ ((1 - share) * np.cov(means.T, bias=True)))
    assert 0.01 < share < 0.9
    assert transferability.h_score(features, labels) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_nleep_is_the_likelihood_over_the_parts_of_a_mixture(shape: tuple[int, int, int]) -> None:
    """Posteriors of scikit-learn's mixture from its densities, and the paper's sums one at a time."""
    features, labels = drawn(*shape)
    reduced = PCA(0.8, svd_solver="full").fit_transform(features.astype(np.float64))
    reduced /= reduced[:, 0].std()
    parts = max(1, min(5 * len(np.unique(labels)), len(labels) // 5))
    mixture = GaussianMixture(parts, covariance_type="diag", random_state=0, max_iter=50, reg_covar=1e-4, tol=1e-2).fit(
        reduced
    )
    total = 0.0
    posterior = []
    for row in reduced:
        density = [
            weight * np.exp(norm(mean, np.sqrt(variance)).logpdf(row).sum())
            for weight, mean, variance in zip(mixture.weights_, mixture.means_, mixture.covariances_, strict=True)
        ]
        posterior.append(np.array(density) / np.sum(density))
    for i, label in enumerate(labels):
        likelihood = 0.0
        for z in range(parts):
            of_label = sum(posterior[j][z] for j in np.flatnonzero(labels == label))
            likelihood += posterior[i][z] * of_label / sum(one[z] for one in posterior)
        total += np.log(likelihood)
    found = transferability.nleep(features, labels)
    assert transferability.leep(np.array(posterior), labels) == pytest.approx(total / len(labels), abs=1e-9)
    assert found == pytest.approx(total / len(labels), abs=1e-6)


def nleep_by_definition(features: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """As the paper (arXiv 2011.11200) and its public code: PCA of 80 %, five Gaussians a class, of full covariance.

    Everything else of scikit-learn's as it comes, and LEEP in matrices.
    """
    reduced = PCA(0.8).fit_transform(features)
    classes = np.unique(labels)
    parts = GaussianMixture(5 * len(classes), random_state=seed).fit(reduced).predict_proba(reduced)
    joint = np.stack([parts[labels == label].sum(axis=0) for label in classes]) / len(labels)
    conditional = joint / joint.sum(axis=0)
    likelihood = parts @ conditional.T
    return float(np.log(likelihood[np.arange(len(labels)), np.searchsorted(classes, labels)]).mean())


def test_nleep_orders_networks_as_the_papers_full_covariances_do() -> None:
    """Features of five qualities: the same order, and values nearby, of Gaussians that cannot lean."""
    rng = np.random.default_rng(5)
    labels = (np.arange(1500) % 3).astype(np.int32)
    signal = rng.normal(size=(3, 12))[labels] * 2
    noise = rng.normal(size=signal.shape)
    ours, theirs = [], []
    for share in (1.2, 1.8, 2.7, 4.0, 6.0):
        features = (signal + share * noise).astype(np.float32)
        ours.append(transferability.nleep(features, labels))
        theirs.append(np.mean([nleep_by_definition(features, labels, seed) for seed in range(2)]))
    assert kendalltau(ours, theirs).statistic > 0.99
    np.testing.assert_allclose(ours, theirs, atol=0.13)


def test_nleep_of_features_that_fall_into_parts_is_what_can_be_counted() -> None:
    """Ten heaps far apart, of two classes: each heap is a part, and P(y | z) the share of a class in it."""
    rng = np.random.default_rng(0)
    heap = np.repeat(np.arange(10), 60)
    angle = 2 * np.pi * heap / 10
    features = 50 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.normal(size=(600, 2))
    labels = (rng.random(600) < np.linspace(0.1, 0.9, 10)[heap]).astype(np.int32)
    shares = np.array([[np.mean(labels[heap == z] == y) for y in (0, 1)] for z in range(10)])
    expected = float(np.log(shares[heap, labels]).mean())
    assert transferability.nleep(features, labels) == pytest.approx(expected, abs=1e-6)
    assert nleep_by_definition(features, labels, 0) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_neighbours_are_scikit_learns_with_each_example_left_out(shape: tuple[int, int, int]) -> None:
    features, labels = drawn(*shape)
    right = 0
    for k in range(len(labels)):
        others = np.arange(len(labels)) != k
        near = KNeighborsClassifier(5, metric="cosine", weights=lambda distances: 2 - distances)
        right += near.fit(features[others], labels[others]).predict(features[k : k + 1])[0] == labels[k]
    assert transferability.nearest(features, labels) == pytest.approx(right / len(labels))


def test_neighbours_of_the_same_group_do_not_vote() -> None:
    """Pairs of equal images, of which each class has some: the twin would say the class of any label."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(200, 16)), 2, axis=0).astype(np.float32)
    labels, groups = np.repeat(rng.integers(0, 4, 200), 2).astype(np.int32), [str(k // 2) for k in range(400)]
    assert transferability.nearest(features, labels, num=1) == 1
    assert transferability.nearest(features, labels, groups, num=1) < 0.4


def test_better_features_score_better_and_none_of_them_helps_where_labels_are_drawn() -> None:
    scores = (transferability.logme, transferability.h_score, transferability.nleep, transferability.nearest)
    features, labels = drawn(120, 12, 3)
    noise = np.random.default_rng(1).normal(size=features.shape).astype(np.float32)
    for score in scores:
        values = [score(features + share * noise, labels) for share in (0, 2, 20)]
        assert values == sorted(values, reverse=True), score.__name__
        constant = score(np.ones_like(features), labels)
        assert np.isfinite(constant) and constant < values[0]


def test_the_order_of_the_trained_and_what_the_first_choice_loses() -> None:
    trained: list[float | None] = [0.9, 0.8, None, 0.95, 0.7]
    right = agreement.agreement("right", [3.0, 2.0, 9.0, 4.0, 1.0], trained)
    wrong = agreement.agreement("wrong", [2.0, 3.0, None, 1.0, 4.0], trained)
    tied = agreement.agreement("tied", [5.0, 1.0, 0.0, 5.0, 1.0], trained)
    assert right is not None and wrong is not None and tied is not None
    assert (right.num, right.kendall, right.spearman, right.regret) == (
        4,
        pytest.approx(1),
        pytest.approx(1),
        0,
    )
    assert wrong.regret == pytest.approx(0.25) and wrong.kendall == pytest.approx(-1)
    assert tied.regret == pytest.approx(0.025)  # the mean of 0.9 and 0.95 instead of 0.95
    assert agreement.agreement("unknown", [None, 1.0, 1.0, 1.0, 1.0], trained) is None
    two = agreement.agreement("two", [1.0, 2.0], [0.5, 0.6])
    assert two is not None and two.kendall is None and two.regret == 0


def test_the_error_of_a_regret_is_that_of_the_paired_difference_and_of_the_spread_over_seeds() -> None:
    """McNemar's variance of a difference on the same images; the variance of a mean of runs that differ as wholes."""
    rng = np.random.default_rng(0)
    num = 2000
    best = rng.random((1, num)) < 0.8
    worse = best & (rng.random((1, num)) < 0.9)  # right about no other image: far less varied than by itself
    found = agreement.agreement("worse", [1.0, 2.0], [0.8, 0.72], agreement.resample([best, worse]))
    share = float((best & ~worse).mean())
    assert found is not None and found.error == pytest.approx(np.sqrt(share * (1 - share) / num), rel=0.1)
    right = agreement.agreement("right", [2.0, 1.0], [0.8, 0.72], agreement.resample([best, worse]))
    assert right is not None and right.error == 0  # the better one in every draw
    runs = np.zeros((2, num), bool)
    runs[1] = True  # accuracies 0 and 1, whatever the images: the mean of two draws has a deviation of sqrt(1 / 8)
    whole = agreement.agreement("seeds", [2.0, 1.0], [0.5, 1.0], agreement.resample([runs, np.ones((1, num), bool)]))
    assert whole is not None and whole.error == pytest.approx(np.sqrt(1 / 8), rel=0.1)
