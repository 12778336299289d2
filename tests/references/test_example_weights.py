"""The weight of an example is scikit-learn's sample_weight: 0 leaves it out, 2 is it twice, and only ratios matter."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from tests.doubles import drawn
from tl_dist.config import ClassifierConfig
from tl_dist.features import classifiers, nested
from tl_dist.features.nested import Examples, Nested
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.tools.tune import search as tuning
from tl_dist.training import losses


def data(classes: int = 3, num: int = 150) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that overlap, labels of unequal classes, and weights over five powers of ten."""
    rng = np.random.default_rng(classes)
    labels = rng.choice(classes, num, p=np.geomspace(1, 3, classes) / np.geomspace(1, 3, classes).sum())
    values = rng.normal(size=(num, 8)) + rng.normal(size=(classes, 8))[labels] / 2
    values = (values * np.geomspace(1e-2, 1e2, 8) + 10).astype(np.float32)
    return values, labels.astype(np.int32), 10 ** rng.uniform(-3, 2, num)


def predicted_by_sklearn(
    values: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    l2: float,
    class_weights: str | dict[int, float] | None = None,
    of: np.ndarray | None = None,
) -> np.ndarray:
    wide = values.astype(np.float64)
    scaler = StandardScaler().fit(wide, sample_weight=weights)
    fitted = LogisticRegression(
        C=1 / (l2 * weights.sum()),
        solver="newton-cholesky",
        tol=1e-12,
        max_iter=1000,
        class_weight=class_weights,
    ).fit(scaler.transform(wide), labels, sample_weight=weights)
    return np.asarray(fitted.predict_proba(scaler.transform(wide if of is None else of.astype(np.float64))))


@pytest.mark.parametrize("class_weights", [None, "balanced", (0.3, 1.0, 4.0)])
@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression(classes: int, class_weights: str | Sequence[float] | None) -> None:
    values, labels, weights = data(classes)
    if class_weights == "balanced":
        ours: Sequence[float] | None = losses.class_weights("balanced", labels, classes, weights)
        theirs: str | dict[int, float] | None = "balanced"
    else:
        ours = None if class_weights is None else [float(k) for k in class_weights[:classes]]
        theirs = None if ours is None else dict(enumerate(ours))
    fitted = classifiers.fit("logistic", values, labels, classes, l2=0.01, class_weights=ours, weights=weights)
    expected = predicted_by_sklearn(values, labels, weights, 0.01, theirs)
    np.testing.assert_allclose(fitted.probabilities(values), expected, atol=1e-6, rtol=0)
    assert fitted.converged
    plain = classifiers.fit("logistic", values, labels, classes, l2=0.01, class_weights=ours)
    assert np.abs(plain.probabilities(values) - expected).max() > 0.1


def test_balanced_classes_are_counted_by_the_weights() -> None:
    _, labels, weights = data()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels, sample_weight=weights)
    np.testing.assert_allclose(losses.class_weights("balanced", labels, 3, weights), expected, rtol=1e-12)
    twice = losses.class_weights("balanced", np.repeat(labels, 2), 3)
    np.testing.assert_allclose(losses.class_weights("balanced", labels, 3, np.full(len(labels), 2.0)), twice)


def test_the_scale_of_the_features() -> None:
    values, _, weights = data()
    other = StandardScaler().fit(values.astype(np.float64), sample_weight=weights)
    mean, spread = classifiers.moments(values, weights)
    np.testing.assert_allclose(mean, other.mean_, rtol=1e-9)
    np.testing.assert_allclose(spread, other.scale_, rtol=1e-9)


@pytest.mark.parametrize("scaling", ["standardize", "none"])
def test_the_nearest_mean_of_whole_weights_is_that_of_repeated_examples(scaling: str) -> None:
    values, labels, weights = data()
    times = np.ceil(weights / 20).astype(int)
    several = values.repeat(times, axis=0).astype(np.float64)
    scaler = StandardScaler(with_mean=scaling != "none", with_std=scaling != "none").fit(several)
    other = NearestCentroid().fit(scaler.transform(several), labels.repeat(times))
    square = ((scaler.transform(values.astype(np.float64))[:, None] - other.centroids_) ** 2).sum(axis=-1)
    unit = np.average(square[np.arange(len(labels)), labels], weights=times)
    expected = np.exp(-(square - square.min(axis=1, keepdims=True)) / unit)
    expected /= expected.sum(axis=1, keepdims=True)
    fitted = classifiers.fit("nearest_mean", values, labels, 3, scaling=scaling, weights=times.astype(np.float64))
    np.testing.assert_allclose(fitted.probabilities(values), expected, atol=1e-6, rtol=0)


def examples(weights: np.ndarray | None, classes: int = 3) -> Examples:
    """Two views of each, of which the first is evaluated."""
    values, labels, _ = drawn(classes)
    return Examples(values, values[:, :1], labels, labels, weights=weights)


def of_settings(name: str = "logistic", **settings: object) -> Nested:
    settings = {"l2": 0.05} | settings if name == "logistic" else settings
    return Nested(
        ClassifierConfig.model_validate({"name": name, **settings}),
        3,
        nested.columns_of(["a", "b"], [30, 10]),
        lambda labels, weights: losses.class_weights("balanced", labels, 3, weights),
    )


KINDS = [
    of_settings(),
    of_settings("nearest_mean"),
    of_settings(l2="auto"),
    of_settings(l2="auto", layers="auto"),
]


@pytest.mark.parametrize("classifier", KINDS)
def test_a_weight_of_zero_leaves_the_example_out_to_the_last_bit(classifier: Nested) -> None:
    """Also of a whole class; and what holds the rest of a class in its folds is not counted either."""
    _, labels, _ = drawn(3)
    rng = np.random.default_rng(0)
    for seen in (rng.random(120) > 0.3, labels != 1):
        weights = np.where(seen, 10 ** rng.uniform(-1, 1, 120), 0.0)
        fitted, choice = classifier.fit(examples(weights))
        other, again = classifier.fit(examples(weights).only(seen))
        assert fitted.kernel.tobytes() == other.kernel.tobytes()
        assert fitted.bias.tobytes() == other.bias.tobytes()
        assert (choice and (choice.l2, choice.layers, choice.log_loss)) == (
            again and (again.l2, again.layers, again.log_loss)
        )
    with pytest.raises(Refusal, match="no training example has a weight above 0") as caught:
        classifier.fit(examples(np.zeros(120)))
    assert caught.value.code == ExitCode.DATA


@pytest.mark.parametrize("classifier", KINDS[:2])
def test_a_whole_weight_is_the_example_so_many_times_and_only_ratios_matter(classifier: Nested) -> None:
    """Each of its views is; l2 keeps its meaning, since the loss stays a mean."""
    times = np.random.default_rng(1).integers(1, 5, 120)
    weights = times.astype(np.float64)
    fitted, _ = classifier.fit(examples(weights))
    several = examples(None)
    rows = np.arange(120).repeat(times)
    of_each = (several.values, several.evaluated, several.labels, several.strata)
    repeated, _ = classifier.fit(Examples(*(some[rows] for some in of_each)))
    values = several.values.reshape(-1, 40)
    expected = repeated.probabilities(values)
    np.testing.assert_allclose(fitted.probabilities(values), expected, atol=1e-6, rtol=0)
    unweighted, _ = classifier.fit(several)
    assert np.abs(unweighted.probabilities(values) - expected).max() > 0.01
    for scale in (1e-30, 0.37, 1e30):
        scaled, _ = classifier.fit(examples(scale * weights))
        np.testing.assert_allclose(scaled.probabilities(values), expected, atol=1e-6, rtol=0)
    ones, _ = classifier.fit(examples(np.full(120, 7.0)))
    np.testing.assert_allclose(ones.probabilities(values), unweighted.probabilities(values), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
@pytest.mark.parametrize("class_weights", [None, (0.2, 1.0, 8.0)])
def test_the_choice_of_l2_weights_the_fits_and_the_held_out_log_loss(
    class_weights: tuple[float, ...] | None, scale: float
) -> None:
    values, labels, weights = data()
    weights = weights**0.5
    fold = np.arange(len(labels)) % 4
    by_class = np.ones(len(labels)) if class_weights is None else np.asarray(class_weights)[labels]
    losses = {}
    for l2 in nested.GRID:
        said = np.zeros((len(labels), 3))
        for k in range(4):
            seen = fold != k
            given = None if class_weights is None else dict(enumerate(class_weights))
            said[~seen] = predicted_by_sklearn(values[seen], labels[seen], weights[seen], l2, given, of=values[~seen])
        losses[l2] = log_loss(labels, said, sample_weight=weights * by_class)
    wide = values[:, None]
    weighted = Examples(wide, wide, labels, labels, weights=scale * weights)
    chosen = nested.choose(weighted, fold, class_weights=class_weights)
    assert chosen.l2 == min(losses, key=losses.__getitem__)
    assert chosen.log_loss == pytest.approx(losses[chosen.l2], abs=1e-3)
    plain = nested.choose(Examples(wide, wide, labels, labels), fold, class_weights=class_weights)
    assert abs(plain.log_loss - chosen.log_loss) > 0.02
    right = nested.held_out_classes(weighted, fold, chosen.l2)
    expected = np.zeros_like(labels)
    for k in range(4):
        seen = fold != k
        said = predicted_by_sklearn(values[seen], labels[seen], weights[seen], chosen.l2, of=values[~seen])
        expected[~seen] = said.argmax(axis=1)
    assert (right == expected).mean() > 0.98


def test_an_outlier_of_next_to_no_weight_takes_nothing_from_what_the_others_say() -> None:
    """The folds are fitted in float32, by the spread of what counts."""
    values, labels, fold = drawn(3)
    far, counts = values.copy(), np.ones(len(labels))
    far[::10] += 1e4
    counts[::10] = 1e-12
    left = counts == 1
    chosen = nested.choose(Examples(far, far, labels, labels, weights=counts), fold, l2=[0.1])
    expected = nested.choose(Examples(values[left], values[left], labels[left], labels[left]), fold[left], l2=[0.1])
    assert chosen.log_loss == pytest.approx(expected.log_loss, abs=2e-3)


def test_settings_are_ranked_by_examples_that_count_as_they_do_in_training() -> None:
    """Of two features one tells the labels that are wrong and weigh nothing, the other the rest."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300).astype(np.int32)
    wrong = rng.random(300) < 0.6
    values = rng.normal(size=(300, 1, 2)).astype(np.float32)
    values[:, 0, 0] += 6 * labels * wrong
    values[:, 0, 1] += 6 * labels * ~wrong
    kind = ClassifierConfig(name="nearest_mean")
    both = [tuning.Setting(kind, [name], "average", np.array([k])) for k, name in enumerate(("no", "yes"))]
    of = Examples(values, values, labels, labels, weights=np.where(wrong, 1e-6, 1.0))
    classifier, fold = Nested(ClassifierConfig(name="logistic"), 2, {}), np.arange(300) % 3
    assert tuning.search(both, classifier, replace(of, weights=None), fold)[0].setting.layers == ["no"]
    best = tuning.search(both, classifier, of, fold)[0]
    assert best.setting.layers == ["yes"]
    assert best.weighted_accuracy > 0.97 > 0.8 > best.accuracy  # what is shown counts each alike, as `eval` does
    left = replace(of, weights=np.where(wrong, 0.0, 1.0))
    assert tuning.search(both, classifier, left, fold)[0].accuracy > 0.97
