"""L2-SP as its authors run it: Li et al., arXiv 1802.01483, written down in NumPy, float64.

Their loss adds alpha / 2 * |w - w0|^2 over the kernels of the pretrained layers (`weight_decay_mode` 1), and its
gradient goes through TensorFlow's momentum with the rest: v = m v + g; w = w - rate v (github.com/holyseven/
TransferLearningClassification, model/network_base.py).
"""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tl_dist.config import OptimizerConfig
from tl_dist.training import optim

KERNEL, BIAS, HEAD = "backbone/a/kernel", "backbone/a/bias", "head/logits/kernel"
SHAPES = {KERNEL: (5, 4), BIAS: (4,), HEAD: (4, 3)}
ALPHA, RATE, STEPS = 0.1, 0.05, 60


def start() -> dict[str, np.ndarray]:
    draws = np.random.default_rng(3)
    return {path: draws.normal(size=shape).astype(np.float32).astype(float) for path, shape in SHAPES.items()}


def gradients(weights: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """Of a loss with its minimum elsewhere than at the start, and noise."""
    noise = np.random.default_rng(step)
    return {path: w - 2.0 + noise.normal(size=w.shape) for path, w in weights.items()}


def ours(alpha: float = ALPHA, gradient: Any = gradients, steps: int = STEPS, **settings: Any) -> dict[str, np.ndarray]:
    config = OptimizerConfig(**{"name": "sgd", "learning_rate": RATE, "l2_sp": alpha, **settings})
    variables = {path: tf.Variable(w, dtype=tf.float32) for path, w in start().items()}
    optimizer = optim.Optimizer(config, variables, scale_loss=False)
    apply = tf.function(lambda grads: optimizer.apply(grads, tf.constant(RATE)))
    for step in range(steps):
        grads = gradient({path: v.numpy().astype(float) for path, v in variables.items()}, step)
        apply([tf.constant(grads[path], tf.float32) for path in variables])
    return {path: v.numpy() for path, v in variables.items()}


def of_the_paper(momentum: float) -> dict[str, np.ndarray]:
    weights, origin = start(), start()
    velocity = {path: np.zeros(shape) for path, shape in SHAPES.items()}
    for step in range(STEPS):
        grads = gradients(weights, step)
        grads[KERNEL] = grads[KERNEL] + ALPHA * (weights[KERNEL] - origin[KERNEL])
        for path in SHAPES:
            velocity[path] = momentum * velocity[path] + grads[path]
            weights[path] = weights[path] - RATE * velocity[path]
    return weights


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_follows_the_authors_step_by_step(momentum: float) -> None:
    found = ours(momentum=momentum)
    for path, expected in of_the_paper(momentum).items():
        np.testing.assert_allclose(found[path], expected, rtol=2e-5, atol=2e-5, err_msg=path)
    unpulled = ours(momentum=momentum, alpha=0.0)
    assert abs(unpulled[KERNEL] - found[KERNEL]).max() > 0.01


def test_through_the_momentum_the_pull_is_as_strong_as_the_documented_decoupled_one() -> None:
    """Weights displaced from their start return at alpha / (1 - momentum) times the rate."""

    def displaced(weights: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
        push = -100.0 if step == 0 else 0.0
        return {path: np.full_like(w, push) for path, w in weights.items()}

    alpha, momentum = 0.002, 0.9
    before, after = (ours(alpha, displaced, steps, momentum=momentum)[KERNEL] - start()[KERNEL] for steps in (80, 130))
    per_step = -np.log(after / before) / 50
    np.testing.assert_allclose(per_step, RATE * alpha / (1 - momentum), rtol=0.02)


def test_adamw_is_pulled_beside_the_moments() -> None:
    """Decoupled as in algorithm 2 of Loshchilov and Hutter (arXiv 1711.05101), toward the start instead of 0."""
    weights, origin = start(), start()
    m, v = ({path: np.zeros(shape) for path, shape in SHAPES.items()} for _ in range(2))
    for t in range(1, STEPS + 1):
        grads = gradients(weights, t - 1)
        weights[KERNEL] = weights[KERNEL] - RATE * ALPHA * (weights[KERNEL] - origin[KERNEL])
        for path in SHAPES:
            m[path] = 0.9 * m[path] + 0.1 * grads[path]
            v[path] = 0.999 * v[path] + 0.001 * grads[path] ** 2
            step = (m[path] / (1 - 0.9**t)) / (np.sqrt(v[path] / (1 - 0.999**t)) + 1e-7)
            weights[path] = weights[path] - RATE * step
    found = ours(name="adamw")
    for path in SHAPES:
        np.testing.assert_allclose(found[path], weights[path], rtol=1e-4, atol=1e-4, err_msg=path)
