"""Ordered grades: the losses are the authors' (coral-pytorch), the figures scikit-learn's, the intervals SciPy's."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from coral_pytorch.dataset import levels_from_labelbatch
from coral_pytorch.layers import CoralLayer
from coral_pytorch.losses import coral_loss, corn_loss
from scipy import stats
from scipy.special import expit, softmax
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from tl_dist.config.training import FOR_GRADES
from tl_dist.data.batch import Batch
from tl_dist.models import heads
from tl_dist.refusal import Refusal
from tl_dist.tasks import ordinal
from tl_dist.training.losses import Objective

GRADES = 5
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(64, 7)).astype(np.float32)
LABELS = RNG.integers(0, GRADES, 64)
BATCH = Batch.of(None, tf.constant(LABELS), tf.range(64))


def layer_of(kind: str) -> Any:
    """A last layer with random weights."""
    layer = heads.last_layer(kind, GRADES, name="logits")
    layer.build((None, 7))
    for variable in layer.weights:
        variable.assign(np.random.default_rng(3).normal(size=variable.shape) + variable.numpy())
    return layer


def torch_logits(layer: Any, kind: str) -> Any:
    kernel, bias = heads.as_dense(kind, {f"head/logits/{v.name}": v.numpy() for v in layer.weights})
    return torch.tensor(FEATURES @ kernel + bias)


def test_corn_is_the_authors_loss_over_the_examples_of_its_tasks() -> None:
    """They divide by the number of pairs of an example and a grade that it has reached; we, as always, by examples."""
    layer = layer_of("corn")
    own = Objective(GRADES, 64).losses(layer(FEATURES), BATCH).numpy()
    num_pairs = sum((k - 1 < LABELS).sum() for k in range(GRADES - 1))
    theirs = corn_loss(torch_logits(layer, "corn"), torch.tensor(LABELS), GRADES)
    assert own.sum() == pytest.approx(float(theirs) * num_pairs, rel=1e-6)


def test_corn_gives_the_grades_their_probabilities() -> None:
    layer = layer_of("corn")
    chance = np.cumprod(expit(torch_logits(layer, "corn").numpy()), axis=1)  # as the paper's P(y > k)
    expected = -np.diff(np.concatenate([np.ones((64, 1)), chance, np.zeros((64, 1))], axis=1), axis=1)
    np.testing.assert_allclose(np.exp(layer(FEATURES)), expected, rtol=1e-5, atol=1e-7)


def test_coral_is_the_authors_loss_of_each_example_and_so_is_its_gradient() -> None:
    layer = layer_of("coral")
    with tf.GradientTape() as tape:
        losses = Objective(GRADES, 64, cumulative=True).losses(layer(FEATURES), BATCH)
    gradient = tape.gradient(losses, layer.kernel.value)
    theirs = CoralLayer(7, GRADES)
    with torch.no_grad():
        theirs.coral_weights.weight.copy_(torch.tensor(layer.kernel.numpy().T))
        theirs.coral_bias.copy_(torch.tensor(heads.thresholds(layer.bias.value).numpy()))
    levels = levels_from_labelbatch(torch.tensor(LABELS), GRADES)
    expected = coral_loss(theirs(torch.tensor(FEATURES)), levels, reduction=None)
    expected.sum().backward()
    np.testing.assert_allclose(losses, expected.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient[:, 0], theirs.coral_weights.weight.grad[0], rtol=1e-4, atol=1e-5)


def test_coral_begins_as_the_authors_and_its_probabilities_are_of_its_chances() -> None:
    layer = heads.last_layer("coral", GRADES, name="logits")
    layer.build((None, 7))
    np.testing.assert_allclose(heads.thresholds(layer.bias.value), CoralLayer(7, GRADES).coral_bias.detach(), rtol=1e-5)
    layer = layer_of("coral")
    chance = expit(torch_logits(layer, "coral").numpy())
    assert (np.diff(chance, axis=1) < 0).all()
    expected = -np.diff(np.concatenate([np.ones((64, 1)), chance, np.zeros((64, 1))], axis=1), axis=1)
    np.testing.assert_allclose(np.exp(layer(FEATURES)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", FOR_GRADES)
def test_grades_that_are_certain_have_finite_losses_and_gradients(kind: str) -> None:
    layer = layer_of(kind)
    for sign in (-1e4, 1e4):
        with tf.GradientTape() as tape:
            losses = Objective(GRADES, 64, cumulative=kind == "coral").losses(layer(FEATURES * sign), BATCH)
        gradients = tape.gradient(losses, [v.value for v in layer.weights])
        assert np.isfinite(losses).all() and all(np.isfinite(g).all() for g in gradients)


def test_the_figures_are_scikit_learns() -> None:
    logits = RNG.normal(size=(300, GRADES)) * 2
    labels = RNG.integers(0, GRADES, 300).astype(np.int32)
    logits[np.arange(300), labels] += 2
    found = ordinal.figures(labels, softmax(logits, axis=1))
    predicted = logits.argmax(axis=1)
    assert found["quadratic_kappa"] == pytest.approx(
        cohen_kappa_score(labels, predicted, weights="quadratic"), abs=1e-9
    )
    assert found["mae"] == pytest.approx(mean_absolute_error(labels, predicted), abs=1e-9)
    theirs = stats.bootstrap((np.abs(labels - predicted),), np.mean, method="percentile", random_state=1)
    np.testing.assert_allclose(found["mae_interval"], theirs.confidence_interval, atol=0.02)
    low, high = found["quadratic_kappa_interval"]
    assert low < found["quadratic_kappa"] < high


def test_intervals_are_over_groups_where_there_are_some() -> None:
    """Each image ten times, as ten of one patient: as wide as that of the images alone."""
    labels = RNG.integers(0, GRADES, 80).astype(np.int32)
    probabilities = softmax(RNG.normal(size=(80, GRADES)) + 2 * np.eye(GRADES)[labels], axis=1)
    alone = ordinal.figures(labels, probabilities)
    tenfold = np.repeat(labels, 10), np.repeat(probabilities, 10, axis=0), np.repeat([f"p{k}" for k in range(80)], 10)
    for name in ("mae_interval", "quadratic_kappa_interval"):
        np.testing.assert_allclose(ordinal.figures(*tenfold)[name], alone[name], atol=0.03)


def test_a_kappa_of_one_grade_is_undefined() -> None:
    found = ordinal.figures(np.zeros(5, np.int32), np.eye(GRADES)[np.zeros(5, int)])
    assert found["quadratic_kappa"] is None and found["mae"] == 0


@pytest.mark.parametrize(
    ("names", "in_order"),
    [(["mild", "none", "severe"], "mild, none, severe"), (["10", "2", "3"], "2, 3, 10"), (["1", "2", "x"], "1, 2, x")],
)
def test_an_unknown_order_is_refused(names: list[str], in_order: str) -> None:
    with pytest.raises(Refusal, match=rf"order of the grades .* is unknown.* Fix: .*'grades: \[{in_order}\]'"):
        ordinal.check(names, (), LABELS)
    ordinal.check(["0", "0.33", "0.67", "1"], (), LABELS)


@pytest.mark.filterwarnings("ignore:__array__")  # of Keras, as it saves
@pytest.mark.parametrize("kind", FOR_GRADES)
def test_what_is_saved_for_keras_alone_computes_the_same(kind: str, tmp_path: Any) -> None:
    layer = layer_of(kind)
    inputs = keras.Input((7,))
    kernel, bias = heads.as_dense(kind, {f"head/logits/{v.name}": v.numpy() for v in layer.weights})
    dense = keras.layers.Dense(GRADES - 1, name="logits")
    model = keras.Model(inputs, heads.log_probabilities(kind, dense(inputs)))
    dense.set_weights([kernel, bias])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(again(FEATURES), layer(FEATURES), rtol=1e-5, atol=1e-6)
