"""Cosine and step schedules with warm-up against timm.scheduler, update by update.

Two differences by convention, both of one update: a warm-up of n gives step t (t + 1)/n of the rate here and t/n in
timm, so that no step is made at rate 0; and timm's MultiStepLRScheduler drops one update before the one it is given.
"""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler

from tl_dist.config import OptimizerConfig, ScheduleConfig
from tl_dist.training import optim

RATE, TOTAL, PER_EPOCH = 0.4, 200, 20


def ours(**schedule: Any) -> np.ndarray:
    config = OptimizerConfig(learning_rate=RATE, schedule=ScheduleConfig(**schedule))
    steps = tf.range(TOTAL, dtype=tf.int64)
    return tf.map_fn(
        lambda step: optim.learning_rate(config, step, steps_per_epoch=PER_EPOCH, total_steps=TOTAL),
        steps,
        fn_output_signature=tf.float32,
    ).numpy()


def theirs(scheduler: type, **settings: Any) -> np.ndarray:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    made = scheduler(optimizer, t_in_epochs=False, **settings)
    found = []
    for update in range(TOTAL + 1):
        made.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return np.array(found)


@pytest.mark.parametrize("warmup", [0, 30])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine(warmup: int, final: float) -> None:
    found = ours(name="cosine", warmup_epochs=warmup / PER_EPOCH, final_fraction=final)
    expected = theirs(
        CosineLRScheduler, t_initial=TOTAL - warmup, lr_min=final * RATE, warmup_t=warmup, warmup_prefix=True
    )
    np.testing.assert_allclose(found[warmup:], expected[warmup:-1], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found[:warmup], expected[1 : warmup + 1], rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 30])
def test_step(warmup: int) -> None:
    found = ours(name="step", warmup_epochs=warmup / PER_EPOCH, drop_at_epochs=(3.0, 7.0), drop_factor=0.2)
    expected = theirs(MultiStepLRScheduler, decay_t=[61, 141], decay_rate=0.2, warmup_t=warmup, warmup_prefix=False)
    np.testing.assert_allclose(found[warmup:], expected[warmup:-1], rtol=1e-5)
    np.testing.assert_allclose(found[:warmup], expected[1 : warmup + 1], rtol=1e-5)
