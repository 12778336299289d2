"""The loss of a student and its gradient against torch's kl_div and cross_entropy, and Keras's distillation."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch.nn import functional

from tl_dist.data.batch import Batch
from tl_dist.training.losses import Distillation, Objective

ROWS, CLASSES = 7, 5
DRAWN = np.random.default_rng(3)
LOGITS, TEACHER = (DRAWN.normal(0, 4, (ROWS, CLASSES)).astype(np.float32) for _ in range(2))
LABELS, OTHERS = (DRAWN.integers(0, CLASSES, ROWS).astype(np.int32) for _ in range(2))
SHARES, WEIGHTS = (DRAWN.uniform(0.2, 1, ROWS).astype(np.float32) for _ in range(2))
CLASS_WEIGHTS = [0.5, 1.0, 2.0, 1.0, 0.7]
BATCH = Batch(None, LABELS, WEIGHTS, None, None, OTHERS, SHARES, TEACHER)


def of_torch(temperature: float, weight: float, *, smoothing: float, mixed: bool) -> tuple[Any, Any]:
    """The loss of each row, and the gradient of their sum."""
    logits, teacher = torch.tensor(LOGITS, requires_grad=True), torch.tensor(TEACHER)

    def hard(labels: np.ndarray) -> Any:
        targets = functional.one_hot(torch.tensor(labels, dtype=torch.int64), CLASSES).float()
        targets = targets * (1 - smoothing) + smoothing / CLASSES
        found = functional.cross_entropy(logits, targets, reduction="none")
        return found * torch.tensor(CLASS_WEIGHTS)[torch.tensor(labels, dtype=torch.int64)]

    share = torch.tensor(SHARES) if mixed else torch.ones(ROWS)
    labels = share * hard(LABELS) + (1 - share) * hard(OTHERS)
    soft = functional.kl_div(
        functional.log_softmax(logits / temperature, dim=1),
        functional.softmax(teacher / temperature, dim=1),
        reduction="none",
    ).sum(dim=1)
    losses = ((1 - weight) * labels + weight * temperature**2 * soft) * torch.tensor(WEIGHTS)
    losses.sum().backward()
    return losses.detach().numpy(), logits.grad.numpy()


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize(("weight", "smoothing", "mixed"), [(0.9, 0.0, False), (0.3, 0.1, True), (1.0, 0.0, False)])
def test_the_loss_and_its_gradient(temperature: float, weight: float, smoothing: float, mixed: bool) -> None:
    """With weights of examples and of classes, smoothed labels and mixtures: these are of the labels alone."""
    objective = Objective(CLASSES, ROWS, smoothing, CLASS_WEIGHTS, mixed, Distillation(temperature, weight))
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = objective.losses(logits, BATCH)
    expected, gradient = of_torch(temperature, weight, smoothing=smoothing, mixed=mixed)
    np.testing.assert_allclose(losses, expected, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(tape.gradient(losses, logits), gradient, rtol=2e-5, atol=1e-5)


def test_the_soft_part_is_that_of_keras() -> None:
    """At a temperature at which no probability is below the 1e-7 at which Keras clips. By an instance of the loss:

    by its name, Keras 3.15 takes the logits themselves for probabilities.
    """
    theirs = keras.distillation.LogitsDistillation(temperature=4.0, loss=keras.losses.KLDivergence())
    ours = tf.reduce_mean(Distillation(4.0, 1.0).losses(tf.constant(LOGITS), tf.constant(TEACHER)))
    assert float(ours) == pytest.approx(float(theirs.compute_loss(TEACHER, LOGITS)), rel=1e-5)


def test_a_teacher_that_is_certain_costs_no_number() -> None:
    """Its other probabilities are below the smallest float: 0 times their logarithm is 0."""
    certain = tf.constant([[3000.0, 0.0, -3000.0]])
    logits = tf.constant([[0.0, 0.0, 0.0]])
    losses = Distillation(1.0, 1.0).losses(logits, certain)
    np.testing.assert_allclose(losses, np.log([3.0]), rtol=1e-6)
    np.testing.assert_allclose(Distillation(1.0, 1.0).losses(certain, certain), [0.0], atol=1e-6)
