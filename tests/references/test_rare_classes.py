"""Losses and draws for rare classes: Keras's focal loss, the authors' class weights, and the scores they prove best."""

from itertools import permutations

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from scipy.optimize import minimize
from scipy.special import softmax

from tl_dist.data.batch import Batch
from tl_dist.data.order import ByClass, Order
from tl_dist.training.losses import Objective, class_weights, logit_adjustment

ALPHA = 1e-5
LOGITS = np.random.default_rng(0).normal(scale=3, size=(64, 5)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 5, 64)
COUNTS = [400, 150, 40, 9, 1]
IMBALANCED = np.random.default_rng(2).permutation(np.repeat(np.arange(5), COUNTS))


def batch_of(labels: np.ndarray) -> Batch:
    return Batch.of(None, tf.constant(labels), tf.range(len(labels)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_the_focal_loss_and_its_gradient_are_keras(gamma: float, smoothing: float) -> None:
    theirs = keras.losses.CategoricalFocalCrossentropy(
        alpha=1.0, gamma=gamma, from_logits=True, label_smoothing=smoothing, reduction="none"
    )
    ours = Objective(5, 64, label_smoothing=smoothing, gamma=gamma)
    logits = tf.constant(LOGITS)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        own, expected = ours.losses(logits, batch_of(LABELS)), theirs(tf.one_hot(LABELS, 5), logits)
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-6)
    gradients = tape.gradient(own, logits), tape.gradient(expected, logits)
    np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-5)


def test_without_gamma_the_focal_loss_is_the_cross_entropy_and_certainty_is_finite() -> None:
    plain, nearly = (Objective(5, 64, gamma=gamma).losses(LOGITS, batch_of(LABELS)) for gamma in (0.0, 1e-6))
    np.testing.assert_allclose(plain, nearly, rtol=1e-4)
    certain = tf.constant(1000 * np.eye(5, dtype=np.float32))
    with tf.GradientTape() as tape:
        tape.watch(certain)
        loss = Objective(5, 5, gamma=0.5).losses(certain, batch_of(np.arange(5)))
    assert np.isfinite(loss).all() and np.isfinite(tape.gradient(loss, certain)).all()


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999])
def test_effective_class_weights_are_the_authors(beta: float) -> None:
    """As class_balanced_loss.py of Cui et al. computes them."""
    effective = 1.0 - np.power(beta, COUNTS)
    weights = (1.0 - beta) / np.array(effective)
    expected = weights / np.sum(weights) * len(COUNTS)
    np.testing.assert_allclose(class_weights("effective", IMBALANCED, 5, beta=beta), expected, rtol=1e-9)
    twice = class_weights("effective", IMBALANCED, 5, np.full(len(IMBALANCED), 2.0), beta=beta)
    np.testing.assert_allclose(twice, class_weights("effective", np.repeat(IMBALANCED, 2), 5, beta=beta))


def test_a_class_without_examples_has_no_weight_and_a_finite_adjustment() -> None:
    for wanted in ("balanced", "effective"):
        assert class_weights(wanted, [0, 0, 2], 3)[1] == 0  # type: ignore[index]
    assert np.isfinite(logit_adjustment([0, 0, 2], 3, None, 1.0)).all()


def test_the_adjusted_losses_best_scores_have_the_least_balanced_error() -> None:
    """Menon et al., section 4: P(y | x) / P(y) for tau 1, here of four kinds of x with known frequencies."""
    joint = np.random.default_rng(3).dirichlet(np.ones(4), size=3).T * np.array([0.9, 0.09, 0.01])  # [x, y]
    kinds, labels = np.divmod(np.arange(12), 3)
    prior = joint.sum(axis=0)
    objective = Objective(3, 1, adjustment=logit_adjustment([0, 1, 2], 3, prior, 1.0))
    batch = batch_of(labels)

    def risk(scores: np.ndarray) -> tuple[float, np.ndarray]:
        of_kinds = tf.constant(scores.reshape(4, 3), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(of_kinds)
            losses = objective.losses(tf.gather(of_kinds, kinds), batch)
            total = tf.reduce_sum(losses * tf.constant(joint.ravel(), tf.float32))
        gradient = tf.convert_to_tensor(tape.gradient(total, of_kinds))
        return float(total), np.asarray(gradient, np.float64).ravel()

    found = minimize(risk, np.zeros(12), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "gtol": 1e-7})
    best = joint / prior
    np.testing.assert_allclose(
        softmax(found.x.reshape(4, 3), axis=1), best / best.sum(axis=1, keepdims=True), atol=5e-3
    )


def test_balanced_draws_show_classes_equally_often_and_each_example_of_one_too() -> None:
    num, listed = len(IMBALANCED), 5 * COUNTS[0]
    order = Order(7, num, 32, by_class=ByClass.of(IMBALANCED))
    rows = order.index(np.arange(3 * listed, dtype=np.int64)).numpy()
    for k in range(3):
        of_classes = np.bincount(IMBALANCED[rows[k * listed : (k + 1) * listed]], minlength=5)
        np.testing.assert_array_equal(of_classes, COUNTS[0])
    first = np.bincount(IMBALANCED[rows[:num]], minlength=5)
    assert stats.chisquare(first).pvalue > ALPHA
    draws = np.bincount(rows, minlength=num)
    for label, (number, often) in enumerate(order.by_class.draws_per_epoch()):  # type: ignore[union-attr]
        assert number == label and often == pytest.approx(num / 5 / COUNTS[label])
        assert np.ptp(draws[label == IMBALANCED]) <= 1
    # Two classes in a row are equal by chance, and a batch is computed on any worker from its positions alone.
    same = (IMBALANCED[rows[1:]] == IMBALANCED[rows[:-1]]).sum()
    assert stats.binomtest(int(same), len(rows) - 1, 1 / 5).pvalue > ALPHA
    some = np.array([5, 700, 1201], np.int64)
    np.testing.assert_array_equal(order.index(some), rows[some])


def test_draws_that_are_balanced_are_a_fair_shuffle_where_classes_are_equal() -> None:
    labels = np.array([1, 0, 1, 0])
    order = Order(11, 4, 2, by_class=ByClass.of(labels))
    rows = order.index(np.arange(4 * 1500, dtype=np.int64)).numpy().reshape(-1, 4)
    number = {order: k for k, order in enumerate(permutations(range(4)))}
    counts = np.bincount([number[tuple(row)] for row in rows.tolist()], minlength=24)
    assert stats.chisquare(counts).pvalue > ALPHA
