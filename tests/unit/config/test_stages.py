"""Where a stage begins and ends, and which settings it takes from the optimizer."""

import numpy as np
import tensorflow as tf

from tl_dist.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    StageConfig,
    stages,
)
from tl_dist.training import optim


def config(*parts: StageConfig, **settings: object) -> Config:
    return Config.model_validate(
        {
            "name": "x",
            "data": DataConfig(name="digits"),
            "model": ModelConfig(backbone="tiny"),
            "optimizer": OptimizerConfig(learning_rate=0.1, head_learning_rate=0.5, weight_decay=0.01),
            "stages": parts,
            **settings,
        }
    )


def steps_of(epochs: float) -> int:
    return round(epochs * 10)


PARTS = (
    StageConfig(train_from="head", epochs=2),
    StageConfig(train_from="block3", steps=5, learning_rate=0.01, schedule=ScheduleConfig(name="cosine")),
    StageConfig(train_from="all", epochs=0.7, learning_rate=0.02, head_learning_rate=0.03),
)


def test_stages_follow_each_other_without_a_gap() -> None:
    plan = stages.plan(config(*PARTS), steps_of)
    assert [(s.number, s.train_from, s.first_step, s.end) for s in plan] == [
        (0, "head", 0, 20),
        (1, "block3", 20, 25),
        (2, "all", 25, 32),
    ]
    assert [stages.at(plan, step).number for step in (0, 1, 20, 21, 25, 26, 32)] == [0, 0, 0, 1, 1, 2, 2]


def test_a_config_without_stages_is_one_stage() -> None:
    (only,) = stages.plan(config(epochs=3.0), steps_of)
    assert (only.train_from, only.first_step, only.end) == ("head", 0, 30)
    partly = config(steps=7, model=ModelConfig(backbone="tiny", train_from="block3"))
    (only,) = stages.plan(partly, steps_of)
    assert (only.train_from, only.first_step, only.end) == ("block3", 0, 7)
    assert only.optimizer == partly.optimizer


def test_the_rate_of_a_stage_is_that_of_the_head_too_unless_it_gives_one() -> None:
    plan = stages.plan(config(*PARTS), steps_of)
    rates = [(s.optimizer.learning_rate, s.optimizer.head_learning_rate) for s in plan]
    assert rates == [(0.1, 0.5), (0.01, None), (0.02, 0.03)]
    assert [s.optimizer.schedule.name for s in plan] == ["constant", "cosine", "constant"]
    assert {s.optimizer.weight_decay for s in plan} == {0.01}


def test_an_average_begins_anew_where_its_variable_was_not_trained_just_before() -> None:
    ours = {
        "backbone/top/kernel": tf.Variable(tf.ones([2, 2])),
        "head/logits/kernel": tf.Variable(tf.ones([2, 2])),
    }
    settings = OptimizerConfig(learning_rate=0.1, ema=0.9)
    both = optim.rules(settings, ours)
    head = {"head/logits/kernel": both["head/logits/kernel"]}
    optimizer = optim.Optimizer(settings, ours, scale_loss=False, stages=[both, head, both])
    optimizer.apply([tf.ones([2, 2])] * 2, tf.constant(0.1), 0)
    optimizer.begin(1)
    optimizer.apply([tf.ones([2, 2])], tf.constant(0.1), 1)
    before = {path: average.numpy() for path, average in optimizer.averages.items()}
    weights = ours["backbone/top/kernel"].numpy()
    np.testing.assert_array_equal(before["backbone/top/kernel"], weights)
    with optimizer.averaged(1):  # a part that is not trained is evaluated as it is
        np.testing.assert_array_equal(ours["backbone/top/kernel"], weights)
        np.testing.assert_array_equal(ours["head/logits/kernel"], before["head/logits/kernel"])
    optimizer.begin(2)
    np.testing.assert_array_equal(optimizer.averages["backbone/top/kernel"], ours["backbone/top/kernel"])
    np.testing.assert_array_equal(optimizer.averages["head/logits/kernel"], before["head/logits/kernel"])


def test_a_variable_goes_on_through_stages_and_counts_the_updates_that_it_has_had() -> None:
    """Adam's correction of its first moments shows how many updates it believes in."""
    settings = OptimizerConfig(name="adam", learning_rate=0.1)
    draws = np.random.default_rng(0).normal(size=(4, 2, 2)).astype(np.float32)

    def trained(parts: list[list[str]]) -> dict[str, np.ndarray]:
        ours = {path: tf.Variable(tf.ones([2, 2])) for path in ("backbone/top/kernel", "head/logits/kernel")}
        both = optim.rules(settings, ours)
        tables = [{path: both[path] for path in part} for part in parts]
        optimizer = optim.Optimizer(settings, ours, scale_loss=False, stages=tables)
        steps = len(draws) // len(parts)
        for number, grads in enumerate(draws):
            stage = number // steps
            if stage and number % steps == 0:
                optimizer.begin(stage)
            optimizer.apply([tf.constant(grads) for _ in parts[stage]], tf.constant(0.1), stage)
        return {path: variable.numpy() for path, variable in ours.items()}

    top, head = "backbone/top/kernel", "head/logits/kernel"
    whole, in_two, head_first = (
        trained([[top, head]]),
        trained([[top, head]] * 2),
        trained([[head], [top, head]]),
    )
    np.testing.assert_array_equal(in_two[top], whole[top])
    np.testing.assert_array_equal(head_first[head], whole[head])
    draws = draws[2:]
    np.testing.assert_array_equal(head_first[top], trained([[top, head]])[top])
