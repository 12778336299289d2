"""Curves have the areas of the figures, keep their ends when they are thinned, and bins add up to the ECE."""

import numpy as np
import pytest

from tl_dist.scores import clusters, curves, figures


@pytest.fixture(scope="module")
def said() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 900).astype(np.int32)
    scores = np.clip(0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.2, 900), 0.01, 0.99)
    return labels, np.stack([1 - scores, scores], axis=1)


def test_the_area_under_the_roc_is_the_figure(said: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = said
    curve = curves.roc(labels == 1, probabilities[:, 1])
    assert curve.area == pytest.approx(figures.roc_auc(labels, probabilities))
    assert len(curve.x) == curves.MAX_POINTS
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(curve.area, abs=0.005)


def test_precision_recall_ascends_to_a_recall_of_one(said: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = said
    curve = curves.precision_recall(labels == 1, probabilities[:, 1])
    assert (np.diff(curve.x) >= 0).all() and curve.x[0] == 0 and curve.x[-1] == 1
    assert curve.y[-1] == pytest.approx(labels.mean()) and curve.y[0] == 1


def test_bins_add_up_to_the_calibration_error(said: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = said
    confidence, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = curves.reliability(confidence, hits)
    assert sum(one.num_examples for one in bins) == len(labels)
    error = sum(one.num_examples * abs(one.accuracy - one.confidence) for one in bins) / len(labels)
    assert error == pytest.approx(figures.calibration_error(confidence, hits))
    assert all(one.interval[0] <= one.accuracy <= one.interval[1] for one in bins)
    assert all(one.low < one.confidence <= one.high for one in bins)


def test_holm_corrects_as_published() -> None:
    # Holm (1979): the smallest of m is multiplied by m, the next by m - 1, and none falls below one before it.
    assert clusters.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert clusters.holm([0.9, 0.5]) == [1.0, 1.0] and clusters.holm([]) == []
