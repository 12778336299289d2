"""Numbers: the losses are Keras's, the figures scikit-learn's and SciPy's, ridge is exact, and intervals hold the
truth as often as they say."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from sklearn import metrics
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tl_dist.config import ClassifierConfig, LossConfig
from tl_dist.data.batch import Batch
from tl_dist.features import classifiers, nested
from tl_dist.models import heads
from tl_dist.refusal import Refusal
from tl_dist.scores import clusters, conformal
from tl_dist.tasks import regression
from tl_dist.training.target_losses import TargetObjective

RNG = np.random.default_rng(0)
NUM = 90
TRUTH = np.stack([RNG.normal(1000, 30, NUM), np.round(RNG.random(NUM), 1)], axis=1).astype(np.float32)  # with ties
VALUES = (TRUTH + RNG.normal(size=(NUM, 2)) * [20, 0.2]).astype(np.float32)
BATCH = Batch.of(None, tf.constant(TRUTH), tf.range(NUM))
SPREAD = TRUTH.std(axis=0)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("squared_error", keras.losses.MeanSquaredError(reduction=None)),
        ("absolute_error", keras.losses.MeanAbsoluteError(reduction=None)),
        ("huber", keras.losses.Huber(0.7, reduction=None)),
    ],
)
def test_losses_are_keras_s_of_standardized_targets(name: Any, theirs: Any) -> None:
    objective = TargetObjective(LossConfig(name=name, delta=0.7), 2, NUM, spread=tf.constant(SPREAD))
    own = objective.losses(tf.constant(VALUES), BATCH)
    np.testing.assert_allclose(own, theirs(TRUTH / SPREAD, VALUES / SPREAD), rtol=1e-3)  # float32 of numbers near 1000
    assert np.isnan(objective.hits(tf.constant(VALUES), TRUTH)).all()


def test_the_last_layer_is_a_dense_layer_in_the_units_of_the_data() -> None:
    layer = heads.last_layer("huber", 2, name="logits")
    layer.build((None, 5))
    features = RNG.normal(size=(4, 5)).astype(np.float32)
    for variable, value in zip(layer.weights, (RNG.normal(size=(5, 2)), [1, 2], [1000, 0.5], [30, 0.2]), strict=True):
        variable.assign(value)
    kernel, bias = heads.as_dense("huber", {f"head/logits/{v.name}": v.numpy() for v in layer.weights})
    standard = features @ layer.kernel.numpy() + [1, 2]
    np.testing.assert_allclose(layer(features), standard * [30, 0.2] + [1000, 0.5], rtol=1e-5)
    np.testing.assert_allclose(features @ kernel + bias, layer(features), rtol=1e-5)
    assert [v.name for v in layer.trainable_variables] == ["kernel", "bias"]


def test_every_figure_is_scikit_learn_s_and_scipy_s() -> None:
    own = regression.figures(TRUTH, VALUES)
    expected = {
        "rmse": metrics.root_mean_squared_error(TRUTH, VALUES),
        "mae": metrics.mean_absolute_error(TRUTH, VALUES),
        "r2": metrics.r2_score(TRUTH, VALUES),
        "spearman": np.mean([stats.spearmanr(a, b).statistic for a, b in zip(TRUTH.T, VALUES.T, strict=True)]),
    }
    assert {name: own[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    for k, row in enumerate(own["targets"]):
        assert row["rmse"] == pytest.approx(metrics.root_mean_squared_error(TRUTH[:, k], VALUES[:, k]), rel=1e-6)
        assert row["spearman"] == pytest.approx(stats.spearmanr(TRUTH[:, k], VALUES[:, k]).statistic, rel=1e-6)


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_percentiles_of_resampled_images_or_groups(grouped: bool) -> None:
    """The very same samples, by scikit-learn and SciPy on the images as often as they were drawn."""
    groups = np.repeat(np.arange(NUM // 3), 3).astype(str) if grouped else ()
    own = regression.figures(TRUTH[:, :1], VALUES[:, :1], groups)
    samples = np.concatenate(list(clusters.resampled(NUM, clusters.numbers(groups), 1)))
    drawn = [np.repeat(np.arange(NUM), sample.astype(int)) for sample in samples]
    a, b = TRUTH[:, 0].astype(float), VALUES[:, 0].astype(float)
    theirs = {
        "rmse": [metrics.root_mean_squared_error(a[rows], b[rows]) for rows in drawn],
        "r2": [metrics.r2_score(a[rows], b[rows]) for rows in drawn],
        "spearman": [stats.spearmanr(a[rows], b[rows]).statistic for rows in drawn],
    }
    for name, values in theirs.items():
        assert own[f"{name}_interval"] == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist(), rel=1e-5), name


def test_the_interval_is_that_of_scipy_s_bootstrap() -> None:
    a, b = TRUTH[:, 0].astype(float), VALUES[:, 0].astype(float)
    theirs = stats.bootstrap(
        (a, b), metrics.mean_absolute_error, paired=True, method="percentile", vectorized=False, n_resamples=2000,
        rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    own = regression.figures(TRUTH[:, :1], VALUES[:, :1])
    assert own["mae_interval"] == pytest.approx([theirs.low, theirs.high], rel=0.05)


def test_what_is_undefined_is_none() -> None:
    own = regression.figures(np.ones((5, 1), np.float32), np.arange(5.0)[:, None])
    assert own["r2"] is None and own["spearman"] is None and own["rmse"] > 0
    assert regression.figures(TRUTH, np.full_like(TRUTH, np.inf))["rmse"] is None


@pytest.mark.parametrize("weighted", [False, True])
def test_ridge_is_scikit_learn_s_to_1e_minus_6(weighted: bool) -> None:
    features = RNG.normal(size=(NUM, 6)).astype(np.float32)
    targets = (features @ RNG.normal(size=(6, 2)) * [50, 0.1] + [1000, 0.5]).astype(np.float32) + TRUTH / 50
    weights = RNG.uniform(0.5, 2, NUM) if weighted else np.ones(NUM)
    own = classifiers.fit("ridge", features, targets, 2, l2=0.3, scaling="none", weights=weights)
    mean = np.average(targets.astype(float), axis=0, weights=weights)
    spread = np.sqrt(np.average((targets - mean) ** 2, axis=0, weights=weights))
    theirs = Ridge(alpha=0.3 * weights.sum(), solver="svd").fit(
        features.astype(float), (targets - mean) / spread, sample_weight=weights
    )
    expected = theirs.predict(features.astype(float)) * spread + mean
    np.testing.assert_allclose(own.probabilities(features), expected, rtol=1e-6)
    if not weighted:
        scaled = classifiers.fit("ridge", features, targets, 2, l2=0.3)
        pipeline = make_pipeline(StandardScaler(), Ridge(alpha=0.3 * NUM, solver="svd"))
        pipeline.fit(features.astype(float), (targets - mean) / spread)
        expected = pipeline.predict(features.astype(float)) * spread + mean
        np.testing.assert_allclose(scaled.probabilities(features), expected, rtol=1e-6)


def test_folds_choose_the_l2_with_the_least_squared_error_of_held_out_targets() -> None:
    """Of noise the strongest, and of a clean line the weakest."""
    features = RNG.normal(size=(60, 1, 40)).astype(np.float32)
    clean = (features[:, 0] @ RNG.normal(size=(40, 1))).astype(np.float32)
    noise = RNG.normal(size=(60, 1)).astype(np.float32)
    chosen = {}
    for name, targets in (("clean", clean), ("noise", noise)):
        examples = nested.Examples(features, features, targets, np.zeros(60, np.int32))
        settings = ClassifierConfig(name="ridge", l2=(10.0, 1.0, 0.1, 0.001))
        fitted = nested.Nested(settings, 1, {"all": np.arange(40)}, loss=regression.loss)
        chosen[name] = fitted.fit(examples)[1].l2
    assert chosen == {"clean": 0.001, "noise": 10.0}


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_intervals_hold_the_truth_as_often_as_they_say(coverage: float) -> None:
    """Over 25 divisions, within the binomial interval of all their test images together; errors are far from normal."""
    held = num = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        errors = np.abs(rng.standard_t(2, size=(600, 2)) * [10, 0.1])
        validation, test = errors[:200], errors[200:]
        half = conformal.half_widths(validation, coverage)
        held += int((test <= half).sum())
        num += test.size
    # Each validation split has its own rate, of which 200 images are one draw: Beta(rank, n + 1 - rank).
    spread = np.sqrt(coverage * (1 - coverage) * (1 / num + 1 / (25 * 2 * 200)))
    assert abs(held / num - coverage) < 3 * spread + 1 / 201


def test_too_few_images_for_a_coverage_are_refused() -> None:
    with pytest.raises(Refusal, match="9 validation images are too few for this coverage: it takes 19"):
        conformal.half_widths(np.ones((9, 1)), 0.95)
