"""Classifiers on features say what scikit-learn's say once it has converged: every probability within 1e-6.

The reference is fitted in float64 by another solver than ours (Newton's method with a factorised Hessian) to a gradient
of 1e-12, on features that scikit-learn scaled.
"""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from tl_dist.features import classifiers, nested
from tl_dist.training.losses import class_weights


def digits(classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of every third example, float32 as features are; three of them are constant."""
    digits = load_digits(n_class=classes)
    return digits.data[::3].astype(np.float32), digits.target[::3].astype(np.int32)


def ill_scaled() -> tuple[np.ndarray, np.ndarray]:
    """Columns whose spreads lie between 1e-4 and 1e4, each far from 0 beside its spread; classes overlap."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 300, p=[0.6, 0.3, 0.1]).astype(np.int32)
    values = rng.normal(size=(300, 12)) + 0.3 * rng.normal(size=(3, 12))[labels]
    return ((values + 30 * rng.normal(size=12)) * np.geomspace(1e-4, 1e4, 12)).astype(np.float32), labels


def reference(l2: float, num: int, scaling: str = "standardize", weights: list[float] | None = None) -> Pipeline:
    fitted = LogisticRegression(
        C=1 / (l2 * num),
        solver="newton-cholesky",
        tol=1e-12,
        max_iter=1000,
        class_weight=None if weights is None else dict(enumerate(weights)),
    )
    return make_pipeline(*([StandardScaler()] if scaling == "standardize" else []), fitted)


@pytest.mark.parametrize("scaling", ["standardize", "none"])
@pytest.mark.parametrize(("classes", "l2"), [(2, 1e-2), (2, 1e-5), (10, 1e-1), (10, 1e-3)])
def test_logistic_regression_of_digits(classes: int, l2: float, scaling: str) -> None:
    features, labels = digits(classes)
    fitted = classifiers.fit("logistic", features, labels, classes, l2=l2, scaling=scaling)
    other = reference(l2, len(labels), scaling).fit(features.astype(np.float64), labels)
    np.testing.assert_allclose(fitted.probabilities(features), other.predict_proba(features), atol=1e-6, rtol=0)
    assert fitted.converged


@pytest.mark.parametrize("l2", [1e-1, 1e-4])
def test_logistic_regression_of_ill_scaled_columns(l2: float) -> None:
    features, labels = ill_scaled()
    fitted = classifiers.fit("logistic", features, labels, 3, l2=l2)
    wide = features.astype(np.float64)
    other = reference(l2, len(labels)).fit(wide, labels)
    np.testing.assert_allclose(fitted.probabilities(features), other.predict_proba(wide), atol=1e-6, rtol=0)
    assert fitted.converged


def test_balanced_weights_also_where_a_class_is_absent() -> None:
    features, labels = digits()
    few = (labels != 3) & ((labels > 1) | (np.arange(len(labels)) % 4 == 0))
    features, labels = features[few], labels[few]
    present = np.unique(labels)
    weights = class_weights("balanced", labels, 10)
    np.testing.assert_allclose(
        np.asarray(weights)[present], compute_class_weight("balanced", classes=present, y=labels), rtol=1e-12
    )
    assert weights[3] == 0 and np.mean(np.asarray(weights)[labels]) == pytest.approx(1)
    fitted = classifiers.fit("logistic", features, labels, 10, l2=0.01, class_weights=weights)
    other = reference(0.01, len(labels)).set_params(logisticregression__class_weight="balanced")
    expected = np.zeros((len(labels), 10))
    expected[:, present] = other.fit(features.astype(np.float64), labels).predict_proba(features)
    np.testing.assert_allclose(fitted.probabilities(features), expected, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")  # of pixels that no example uses
@pytest.mark.parametrize("scaling", ["standardize", "none"])
def test_the_nearest_mean(scaling: str) -> None:
    """The classes of NearestCentroid, and the softmax of the negative squared distances to its centroids."""
    features, labels = digits()
    fitted = classifiers.fit("nearest_mean", features, labels, 10, scaling=scaling)
    scaled = StandardScaler().fit_transform(features.astype(np.float64)) if scaling == "standardize" else features
    other = NearestCentroid().fit(scaled, labels)
    np.testing.assert_array_equal(fitted.logits(features).argmax(axis=1), other.predict(scaled))
    # In units of the mean squared distance of an example to the centroid of its own class.
    square = ((scaled[:, None].astype(np.float64) - other.centroids_) ** 2).sum(axis=-1)
    unit = square[np.arange(len(labels)), labels].mean()
    expected = np.exp(-square / unit)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fitted.probabilities(features), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 8.0]])
def test_the_choice_of_l2_is_that_of_a_search_over_folds(weights: list[float] | None) -> None:
    """Held-out log loss of scikit-learn's own fits of each fold, weighted as they are, against the stacked problem."""
    features, labels = ill_scaled()
    wide = features.astype(np.float64)
    fold = np.arange(len(labels)) % 4
    parts = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(4)]
    rows = np.ones(len(labels)) if weights is None else np.asarray(weights)[labels]
    losses = {}
    for l2 in nested.GRID:
        probabilities = cross_val_predict(
            reference(l2, 3 * len(labels) // 4, weights=weights),
            wide,
            labels,
            cv=parts,
            method="predict_proba",
        )
        losses[l2] = float(-(rows * np.log(probabilities[np.arange(len(labels)), labels])).sum() / rows.sum())
    values = features[:, None]
    chosen = nested.choose(nested.Examples(values, values, labels, labels), fold, class_weights=weights)
    assert chosen.l2 == min(losses, key=losses.__getitem__)
    assert chosen.log_loss == pytest.approx(losses[chosen.l2], abs=1e-3)
