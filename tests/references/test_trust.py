"""Temperatures are those of torch's L-BFGS, distances those of scikit-learn's neighbours, tests of groups SciPy's."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import hypergeom
from sklearn.neighbors import NearestNeighbors

from tl_dist.scores import calibration, neighbours
from tl_dist.scores.evaluation import by_group


def drawn(classes: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and logits that are too large by `scale`."""
    rng = np.random.default_rng((classes, round(10 * scale)))
    labels = rng.integers(0, classes, 700).astype(np.int32)
    logits = scale * (rng.normal(size=(700, classes)) + 1.5 * np.eye(classes)[labels])
    return labels, logits.astype(np.float32)


@pytest.mark.parametrize(("classes", "scale"), [(2, 4.0), (3, 0.3), (10, 2.0), (100, 1.0)])
def test_the_temperature_is_torchs_and_scipys(classes: int, scale: float) -> None:
    labels, logits = drawn(classes, scale)
    found = calibration.fitted(labels, logits)

    z, y = torch.tensor(logits, dtype=torch.float64), torch.tensor(labels.astype(np.int64))
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_t], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(z / log_t.exp(), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert found == pytest.approx(float(log_t.detach().exp()), rel=1e-5)

    def loss(log_temperature: float) -> float:
        wide = log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=1)
        return -float(wide[np.arange(len(labels)), labels].mean())

    scipys = minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}).x
    assert found == pytest.approx(np.exp(scipys), rel=1e-4)


@pytest.mark.parametrize(("kept", "width", "k"), [(40, 8, 5), (7000, 16, 7)])
def test_distances_are_scikit_learns(kept: int, width: int, k: int) -> None:
    rng = np.random.default_rng(kept)
    bank, queries = (neighbours.normalised(rng.normal(size=(n, width)).astype(np.float32)) for n in (kept, 77))
    expected = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(bank.astype(np.float64))
    distances = expected.kneighbors(queries.astype(np.float64))[0][:, -1]
    np.testing.assert_allclose(neighbours.distances(bank, queries, 16), distances, rtol=1e-5)


def test_the_test_of_a_group_is_hypergeometric() -> None:
    rng = np.random.default_rng(1)
    names = rng.choice(["a", "b", "c"], 300, p=[0.5, 0.3, 0.2])
    labels = rng.integers(0, 2, 300).astype(np.int32)
    right = rng.random(300) < np.where(names == "c", 0.7, 0.9)
    p = np.where((labels == 1) == right, 0.8, 0.2)
    rows = by_group(names.tolist(), labels, np.stack([1 - p, p], axis=1))
    assert rows[0]["name"] == "c" and {row["name"] for row in rows} == {"a", "b", "c"}
    for row in rows:
        n, k = int((names == row["name"]).sum()), int(right[names == row["name"]].sum())
        assert (row["num_examples"], row["accuracy"]) == (n, pytest.approx(k / n))
        expected = min(1.0, 3 * hypergeom(300, int(right.sum()), n).cdf(k))
        assert row["p_value"] == pytest.approx(expected)
