"""A gradient that is not finite changes nothing but the loss scale; rates follow their schedule."""

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tl_dist.config import OptimizerConfig, ScheduleConfig
from tl_dist.training import optim


def variables() -> dict[str, Any]:
    values = np.random.default_rng(1)
    return {
        "kernel": tf.Variable(values.normal(size=(3, 4)), dtype=tf.float32),
        "bias": tf.Variable(values.normal(size=4), dtype=tf.float32),
    }


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("scale_loss", [True, False])
@pytest.mark.parametrize("name", ["adam", "lars", "lamb"])
@pytest.mark.parametrize("select", [False, True], ids=["branch", "select"])
def test_a_gradient_that_is_not_finite_changes_no_weight_and_no_slot(
    bad: float, scale_loss: bool, name: str, select: bool
) -> None:
    ours = variables()
    settings = OptimizerConfig(name=name, learning_rate=0.1, ema=0.9)  # type: ignore[arg-type]
    optimizer = optim.Optimizer(settings, ours, scale_loss=scale_loss)
    before = {path: v.numpy().copy() for path, v in {**ours, **optimizer.variables}.items()}
    skipped, _ = optimizer.apply([tf.fill((3, 4), bad), tf.ones(4)], tf.constant(0.1), select=select)
    after = {path: v.numpy() for path, v in {**ours, **optimizer.variables}.items()}
    assert skipped.numpy() == 1
    for path, value in before.items():
        expected = value / 2 if scale_loss and path == "optimizer/loss_scale" else value
        np.testing.assert_array_equal(after[path], expected, err_msg=path)


RULES = {
    "sgd": {"name": "sgd", "momentum": 0.9, "nesterov": True, "clip_norm": 0.5, "weight_decay": 0.01},
    "plain sgd": {"name": "sgd", "momentum": 0.0, "l2_sp": 0.01},
    "adamw": {"name": "adamw", "weight_decay": 0.01, "layer_decay": 0.5, "ema": 0.9},
}


@pytest.mark.parametrize("rule", RULES)
def test_a_gpus_update_is_that_of_a_cpu_and_so_is_what_xla_makes_of_it(rule: str) -> None:
    """In two stages, of which the second has one variable more: counts, averages and rates of either."""

    def trained(*, select: bool, xla: bool) -> dict[str, np.ndarray]:
        ours = variables()
        config = OptimizerConfig(learning_rate=0.1, **RULES[rule])
        table = optim.rules(config, ours, {"kernel": 1})
        stages = [{"bias": table["bias"]}, table]
        optimizer = optim.Optimizer(config, ours, scale_loss=True, stages=stages)

        def apply(grads: Any, stage: int) -> Any:
            return optimizer.apply(grads, tf.constant(0.1), stage, select=select)

        update = tf.function(apply, jit_compile=xla, autograph=False)
        grads = np.random.default_rng(2)
        for step in range(5):
            stage = int(step > 1)
            worth = np.inf if step == 3 else optimizer.scale().numpy()
            update(
                [tf.constant(grads.normal(size=ours[p].shape) * worth, tf.float32) for p in stages[stage]],
                stage,
            )
        return {path: v.numpy() for path, v in {**ours, **optimizer.variables}.items()}

    expected = trained(select=False, xla=False)
    assert [expected[f"optimizer/{name}"] for name in ("updates", "updates/1")] == [2, 2]
    for path, value in trained(select=True, xla=False).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)
    for path, value in trained(select=True, xla=True).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_scaled_gradients_are_unscaled_and_the_scale_grows_after_enough_finite_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optim, "GROW_AFTER", 3)
    ours = {"w": tf.Variable([1.0])}
    optimizer = optim.Optimizer(OptimizerConfig(name="sgd", momentum=0.0, learning_rate=0.5), ours, scale_loss=True)
    scales = []
    for _ in range(4):
        scale = optimizer.scale().numpy()
        scales.append(float(scale))
        optimizer.apply([tf.constant([0.25 * scale])], tf.constant(0.5))
    assert scales == [2.0**15] * 3 + [2.0**16]
    np.testing.assert_allclose(ours["w"].numpy(), [1.0 - 4 * 0.5 * 0.25])


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_an_update_by_layer_is_as_long_as_its_weights_say_whatever_the_gradient_and_the_loss_scale(
    name: str,
) -> None:
    """|update| = rate * fraction * |weights|, through unscaling and clipping; weights of 0 can leave 0."""
    for factor in (1e-3, 1.0, 1e3):
        ours = {"kernel": tf.Variable(tf.fill([3, 4], 2.0)), "zero": tf.Variable(tf.zeros([2, 2]))}
        config = OptimizerConfig(
            name=name,  # type: ignore[arg-type]
            learning_rate=0.1,
            momentum=0.0,
            trust_coefficient=0.5,
            clip_norm=0.01,
            ema=0.5,
        )
        optimizer = optim.Optimizer(config, ours, scale_loss=True)
        before = ours["kernel"].numpy()
        scale = optimizer.scale()
        optimizer.apply([tf.random.normal([3, 4], seed=1) * scale * factor, tf.ones([2, 2]) * scale], 0.1)
        moved = np.linalg.norm(ours["kernel"].numpy() - before)
        assert moved == pytest.approx(0.1 * np.linalg.norm(before) * (0.5 if name == "lars" else 1.0), rel=1e-3)
        assert np.abs(ours["zero"].numpy()).min() > 0
        average = optimizer.averages["kernel"].numpy()
        assert not np.array_equal(average, before) and not np.array_equal(average, ours["kernel"].numpy())


def rates(schedule: ScheduleConfig, total_steps: int = 100) -> list[float]:
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule)
    return [
        float(optim.learning_rate(config, tf.constant(s, tf.int64), steps_per_epoch=10, total_steps=total_steps))
        for s in range(total_steps)
    ]


def test_constant_rate_with_warm_up() -> None:
    found = rates(ScheduleConfig(warmup_epochs=0.5))
    np.testing.assert_allclose(found[:6], [0.4, 0.8, 1.2, 1.6, 2.0, 2.0], rtol=1e-6)
    assert set(found[5:]) == {2.0}


def test_cosine_falls_from_the_rate_to_its_fraction() -> None:
    found = rates(ScheduleConfig(name="cosine", final_fraction=0.1))
    expected = [2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * s / 100))) for s in range(100)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_step_drops_at_its_epochs() -> None:
    found = rates(ScheduleConfig(name="step", drop_at_epochs=(3.0, 6.0), drop_factor=0.5))
    np.testing.assert_allclose([found[k] for k in (29, 30, 59, 60)], [2.0, 1.0, 1.0, 0.5], rtol=1e-6)


def test_a_rate_that_figures_have_lowered_is_in_force_at_once_and_traces_nothing() -> None:
    weight, traces = {"bias": tf.Variable([0.0])}, []
    optimizer = optim.Optimizer(OptimizerConfig(learning_rate=0.5, momentum=0.0), weight, scale_loss=False)

    @tf.function
    def step() -> None:
        traces.append(1)
        optimizer.apply([tf.ones(1)], optimizer.lowered(tf.constant(0.5)))

    for factor, expected in ((1.0, -0.5), (0.1, -0.55), (0.01, -0.555)):
        optimizer.lower_rate(factor)
        step()
        assert weight["bias"].numpy()[0] == pytest.approx(expected)
    assert len(traces) == 1 and not any("factor" in path for path in optimizer.variables)
