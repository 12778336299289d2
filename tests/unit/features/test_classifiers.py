"""Classifiers on features are exact: the optimum itself. tests/references compares them with scikit-learn."""

import numpy as np
import pytest

from tl_dist.features import classifiers


def drawn(classes: int = 3, num: int = 240) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes, num).astype(np.int32)
    centres = rng.normal(size=(classes, 6))
    features = centres[labels] + rng.normal(size=(num, 6))
    return features * [1, 10, 0.1, 300, 1, 1] + [5, 0, 0, -900, 0, 1], labels


def test_the_gradient_at_the_result_is_zero() -> None:
    """Against an independent formula, so that a wrong objective on both sides would show."""
    features, labels = drawn()
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    weights = [1.0, 2.0, 0.5]
    fitted = classifiers.logistic(x, labels, 3, l2=0.02, class_weights=weights)
    rows = np.asarray(weights)[labels]
    error = (fitted.probabilities(x) - np.eye(3)[labels]) * rows[:, None] / rows.sum()
    scale = rows.sum() / len(labels)  # the penalty is over the count of examples, the loss over their weights
    np.testing.assert_allclose(scale * (x.T @ error) + 0.02 * fitted.kernel, 0, atol=1e-9)
    np.testing.assert_allclose(error.sum(axis=0), 0, atol=1e-9)


@pytest.mark.parametrize("name", ["logistic", "nearest_mean"])
def test_a_class_without_examples_is_never_said(name: str) -> None:
    features, labels = drawn()
    seen = labels != 1
    fitted = classifiers.fit(name, features[seen], labels[seen], 3, l2=0.1)
    assert fitted.probabilities(features)[:, 1].max() == 0
    only = labels == 2
    alone = classifiers.fit(name, features[only], labels[only], 3, l2=0.1)
    np.testing.assert_allclose(alone.probabilities(features), np.eye(3)[[2] * len(features)])


def test_a_constant_feature_changes_nothing() -> None:
    features, labels = drawn()
    constant = np.full((len(features), 1), 0.7)
    assert constant.std() > 0  # by rounding: a spread, but not one of the feature
    more = np.concatenate([features, constant], axis=1)
    fitted, other = (classifiers.fit("logistic", x, labels, 3, l2=0.1) for x in (features, more))
    np.testing.assert_allclose(fitted.probabilities(features), other.probabilities(more), atol=1e-9)


def test_without_a_penalty_the_loss_alone_is_at_its_minimum() -> None:
    features, labels = drawn(num=600)
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    fitted = classifiers.logistic(x, labels, 3, l2=0.0)
    error = (fitted.probabilities(x) - np.eye(3)[labels]) / len(labels)
    np.testing.assert_allclose(x.T @ error, 0, atol=1e-9)


def test_a_fit_that_was_cut_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = drawn()
    monkeypatch.setattr(classifiers, "MOST_STEPS", 1)
    assert not classifiers.fit("logistic", features, labels, 3, l2=1e-3).converged
