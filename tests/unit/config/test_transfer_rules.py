"""Rates and decays by layer, the pull toward the start and the average of the weights, against NumPy."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tl_dist.config import ModelConfig, OptimizerConfig, registry
from tl_dist.models import classifier
from tl_dist.training import optim

KERNEL, BIAS, HEAD = "backbone/top/kernel", "backbone/top/bias", "head/logits/kernel"
SHAPES = {KERNEL: (3, 4), BIAS: (4,), HEAD: (4, 2)}


def variables() -> dict[str, Any]:
    draws = np.random.default_rng(1)
    return {path: tf.Variable(draws.normal(size=shape), dtype=tf.float32) for path, shape in SHAPES.items()}


def gradients(steps: int) -> list[dict[str, np.ndarray]]:
    draws = np.random.default_rng(2)
    return [{p: draws.normal(size=s).astype(np.float32) for p, s in SHAPES.items()} for _ in range(steps)]


def run(
    steps: int,
    *,
    depths: dict[str, int] | None = None,
    new: tuple[str, ...] = (),
    rules: dict[str, optim.Rule] | None = None,
    **settings: Any,
) -> tuple[dict[str, Any], dict[str, Any], optim.Optimizer]:
    """(start, weights after `steps` updates at rate 0.1, optimizer); `rules` instead of those of the settings."""
    config = OptimizerConfig(**({"name": "sgd", "momentum": 0.0, "learning_rate": 0.1} | settings))
    ours = variables()
    start = {path: v.numpy() for path, v in ours.items()}
    optimizer = optim.Optimizer(
        config, ours, scale_loss=False, stages=[rules or optim.rules(config, ours, depths, new)]
    )
    apply = tf.function(lambda grads: optimizer.apply(grads, tf.constant(0.1)))
    for grads in gradients(steps):
        apply([tf.constant(grads[path]) for path in ours])
    return start, {path: v.numpy() for path, v in ours.items()}, optimizer


def test_the_head_has_its_own_rate_and_each_layer_a_fraction_of_the_one_above() -> None:
    depths = {KERNEL: 2, BIAS: 2}
    start, after, _ = run(3, depths=depths, head_learning_rate=0.4, layer_decay=0.5)
    total = {path: sum(g[path] for g in gradients(3)) for path in SHAPES}
    for path, rate in {KERNEL: 0.025, BIAS: 0.025, HEAD: 0.4}.items():
        np.testing.assert_allclose(after[path], start[path] - rate * total[path], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("given", "of_head"), [(0.1, 0.1), (0.0, 0.0), (None, 0.5)])
def test_the_head_has_its_own_decay_and_a_bias_has_none(given: float | None, of_head: float) -> None:
    start, after, _ = run(4, weight_decay=0.5, head_weight_decay=given)
    for path, decay in {KERNEL: 0.5, BIAS: 0.0, HEAD: of_head}.items():
        expected = start[path]
        for grads in gradients(4):
            expected = expected * (1 - 0.1 * decay) - 0.1 * grads[path]
        np.testing.assert_allclose(after[path], expected, rtol=1e-5, atol=1e-6)


def test_l2_sp_pulls_pretrained_kernels_to_their_start_and_the_head_to_zero() -> None:
    start, after, optimizer = run(5, l2_sp=0.6, head_weight_decay=0.2)
    for path in SHAPES:
        toward = np.zeros_like(start[path]) if path == HEAD else start[path]
        expected = start[path]
        for grads in gradients(5):
            decay = {KERNEL: 0.6, BIAS: 0.0, HEAD: 0.2}[path]
            expected = expected - 0.1 * decay * (expected - toward) - 0.1 * grads[path]
        np.testing.assert_allclose(after[path], expected, rtol=1e-5, atol=1e-6)
    assert set(optimizer.start) == {KERNEL}
    assert not any("start" in path for path in optimizer.variables)  # no checkpoint holds it


def test_a_layer_with_new_weights_is_not_pulled_to_its_random_start() -> None:
    start, after, optimizer = run(1, l2_sp=0.6, head_weight_decay=0.2, new=(KERNEL,))
    assert not optimizer.start
    expected = start[KERNEL] * (1 - 0.1 * 0.2) - 0.1 * gradients(1)[0][KERNEL]  # it decays as the head does
    np.testing.assert_allclose(after[KERNEL], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_settings_without_effect_leave_every_bit_as_an_optimizer_without_rules(name: str) -> None:
    none = {
        "l2_sp": 0.0, "layer_decay": 1.0, "head_learning_rate": 0.1, "head_weight_decay": 0.0,
        "depths": {KERNEL: 3},
    }  # fmt: skip
    _, plain, _ = run(6, name=name, rules={path: optim.Rule() for path in SHAPES})
    _, same, optimizer = run(6, name=name, **none)
    for path in SHAPES:
        np.testing.assert_array_equal(plain[path], same[path])
    assert not optimizer.start and not optimizer.averages
    for key, value, path in (
        ("l2_sp", 1e-3, KERNEL), ("layer_decay", 0.9, KERNEL), ("head_learning_rate", 0.2, HEAD),
        ("head_weight_decay", 1e-3, HEAD),
    ):  # fmt: skip
        _, other, _ = run(6, name=name, **{**none, key: value})
        assert not np.array_equal(plain[path], other[path]), key


def test_the_average_follows_fast_at_first_and_moves_in_no_skipped_step() -> None:
    start, _, _ = run(0)
    _, _, optimizer = run(12, ema=0.4)
    weights, averages = dict(start), dict(start)
    for t, grads in enumerate(gradients(12)):
        decay = min(0.4, (1 + t) / (10 + t))
        for path in SHAPES:
            weights[path] = weights[path] - 0.1 * grads[path]
            averages[path] = decay * averages[path] + (1 - decay) * weights[path]
    for path, average in optimizer.averages.items():
        np.testing.assert_allclose(average, averages[path], rtol=1e-5, atol=1e-6)
        assert optimizer.variables[f"optimizer/ema/{path}"] is average
    optimizer.apply([tf.fill(shape, np.nan) for shape in SHAPES.values()], tf.constant(0.1))
    for path, average in optimizer.averages.items():
        np.testing.assert_allclose(average, averages[path], rtol=1e-5, atol=1e-6)


def test_within_averaged_the_variables_hold_the_averages_and_afterwards_every_bit_is_back() -> None:
    ours = variables()
    config = OptimizerConfig(learning_rate=0.1, ema=0.9)
    optimizer = optim.Optimizer(config, ours, scale_loss=False)
    optimizer.apply([tf.ones(shape) for shape in SHAPES.values()], tf.constant(0.1))
    before = {path: v.numpy() for path, v in ours.items()}
    with optimizer.averaged():
        for path, variable in ours.items():
            np.testing.assert_array_equal(variable, optimizer.averages[path])
            assert not np.array_equal(variable, before[path])
    for path, variable in ours.items():
        np.testing.assert_array_equal(variable, before[path])


def test_the_averages_of_a_commit_are_at_any_time_the_weights_that_are_evaluated() -> None:
    """`source:` carries the averages: through three stages, of which the second leaves the backbone alone."""
    config = OptimizerConfig(learning_rate=0.1, momentum=0.0, ema=0.9)
    ours = variables()
    every = optim.rules(config, ours)
    tables = [every, {HEAD: every[HEAD]}, {path: every[path] for path in (KERNEL, HEAD)}]
    optimizer = optim.Optimizer(config, ours, scale_loss=False, stages=tables)
    for stage, table in enumerate(tables):
        if stage:
            optimizer.begin(stage)
        for grads in gradients(3):
            optimizer.apply([tf.constant(grads[path]) for path in table], tf.constant(0.1), stage)
        with optimizer.averaged(stage):
            for path, variable in ours.items():
                np.testing.assert_array_equal(variable, optimizer.averages[path], err_msg=f"{stage} {path}")


def test_the_slowest_variable_of_a_stage_is_named_with_its_part_of_the_rate() -> None:
    _, _, optimizer = run(0, depths={KERNEL: 3, BIAS: 2}, layer_decay=0.5)
    assert optimizer.slowest(0) == (KERNEL, 0.125)


def test_depth_counts_blocks_from_the_top() -> None:
    backbone = registry.backbone("tiny")
    config = ModelConfig(backbone="tiny", weights="random", train_from="all")
    net = classifier.Classifier(backbone, config, image_size=32, num_classes=3, seed=0)
    assert net.depths == {f"backbone/block{k}_conv1/{name}": 4 - k for k in (1, 2, 3) for name in ("kernel", "bias")}
