"""Update rules, loss scale and averaged weights against those of Keras and TensorFlow."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_dist.config import OptimizerConfig
from tl_dist.training import optim

RULES = {
    "sgd": ({"name": "sgd", "momentum": 0.0}, lambda: keras.optimizers.SGD(0.1)),
    "momentum": ({"name": "sgd", "momentum": 0.9}, lambda: keras.optimizers.SGD(0.1, momentum=0.9)),
    "nesterov": (
        {"name": "sgd", "momentum": 0.9, "nesterov": True},
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    ),
    "adam": ({"name": "adam"}, lambda: keras.optimizers.Adam(0.1)),
    "adamw": (
        {"name": "adamw", "weight_decay": 0.02, "clip_norm": 1.0},
        lambda: keras.optimizers.AdamW(0.1, weight_decay=0.02, global_clipnorm=1.0),
    ),
    "lamb": ({"name": "lamb", "clip_norm": 1.0}, lambda: keras.optimizers.Lamb(0.1, global_clipnorm=1.0)),
}
KERNELS_ALONE = ("lamb",)
"""rules that Keras applies to biases as well, which their authors leave out"""


def variables() -> dict[str, Any]:
    values = np.random.default_rng(1)
    return {
        "kernel": tf.Variable(values.normal(size=(3, 4)), dtype=tf.float32),
        "bias": tf.Variable(values.normal(size=4), dtype=tf.float32),
    }


@pytest.mark.parametrize("rule", list(RULES))
def test_twenty_updates_are_those_of_keras(rule: str) -> None:
    settings, build = RULES[rule]
    ours = variables()
    if rule in KERNELS_ALONE:
        del ours["bias"]
    theirs = [keras.Variable(v.numpy(), name=name) for name, v in ours.items()]
    optimizer = optim.Optimizer(OptimizerConfig(learning_rate=0.1, **settings), ours, scale_loss=False)
    reference = build()
    if settings.get("weight_decay"):
        reference.exclude_from_weight_decay(var_names=["bias"])
    apply = tf.function(lambda grads: optimizer.apply(grads, tf.constant(0.1)))
    draws = np.random.default_rng(2)
    for _ in range(20):
        grads = [tf.constant(draws.normal(size=v.shape), tf.float32) for v in ours.values()]
        skipped, norm = apply(grads)
        reference.apply(grads, theirs)
        assert skipped.numpy() == 0
        assert norm.numpy() == pytest.approx(tf.linalg.global_norm(grads).numpy(), rel=1e-6)
    for mine, other in zip(ours.values(), theirs, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=2e-5, atol=2e-5)  # single steps are 0.1


def test_the_loss_scale_and_the_weights_are_those_of_keras_through_overflows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Growth, an overflow just before it was due, several in a row, growth again."""
    monkeypatch.setattr(optim, "GROW_AFTER", 3)
    overflows = {2, 7, 8, 9, 13}
    ours = variables()
    theirs = [keras.Variable(v.numpy(), name=name) for name, v in ours.items()]
    config = OptimizerConfig(name="sgd", momentum=0.9, learning_rate=0.1)
    optimizer = optim.Optimizer(config, ours, scale_loss=True)
    reference = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1, momentum=0.9),
        initial_scale=optim.INITIAL_LOSS_SCALE,
        dynamic_growth_steps=optim.GROW_AFTER,
    )
    reference.build(theirs)
    draws = np.random.default_rng(3)
    scales = []
    for step in range(24):
        scale = float(optimizer.scale())
        assert scale == float(reference.dynamic_scale)
        scales.append(scale)
        grads = [tf.constant(draws.normal(size=v.shape) * scale, tf.float32) for v in ours.values()]
        if step in overflows:
            grads[1] = tf.tensor_scatter_nd_update(grads[1], [[0]], [np.inf])
        skipped, _ = optimizer.apply(grads, tf.constant(0.1))
        reference.apply(grads, theirs)
        assert bool(skipped) == (step in overflows)
        for mine, other in zip(ours.values(), theirs, strict=True):
            np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)
    assert scales[9] < min(scales[0], scales[-1])  # it went down and up


def test_averaged_weights_are_those_of_tensorflow_with_the_number_of_updates() -> None:
    ours = variables()
    optimizer = optim.Optimizer(OptimizerConfig(name="sgd", learning_rate=0.1, ema=0.95), ours, scale_loss=False)
    updates = tf.Variable(0, dtype=tf.int64)
    theirs = [tf.Variable(v.numpy()) for v in ours.values()]
    reference = tf.train.ExponentialMovingAverage(0.95, num_updates=updates)
    reference.apply(theirs)  # begins at the weights
    draws = np.random.default_rng(4)
    for step in range(250):  # the decay follows the number of updates for 170 of them
        optimizer.apply([tf.constant(draws.normal(size=v.shape), tf.float32) for v in ours.values()], 0.1)
        updates.assign(step)
        for mine, other in zip(ours.values(), theirs, strict=True):
            other.assign(mine)
        reference.apply(theirs)
    for average, other in zip(optimizer.averages.values(), theirs, strict=True):
        np.testing.assert_allclose(average.numpy(), reference.average(other).numpy(), rtol=1e-5, atol=1e-6)
