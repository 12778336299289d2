"""Update rules and clipping against torch.optim, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from tl_dist.config import OptimizerConfig
from tl_dist.training import optim

SHAPES = {"kernel": (6, 5), "bias": (5,)}
RULES: dict[str, tuple[dict[str, Any], Any]] = {
    "sgd": ({"name": "sgd", "momentum": 0.0}, lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": ({"name": "sgd", "momentum": 0.9}, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "nesterov": (
        {"name": "sgd", "momentum": 0.9, "nesterov": True},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    ),
    "adam": ({"name": "adam"}, lambda p: torch.optim.Adam(p, 0.1, eps=1e-7)),
    "adamw": (
        {"name": "adamw", "weight_decay": 0.05},
        lambda p: torch.optim.AdamW(
            [{"params": p[:1], "weight_decay": 0.05}, {"params": p[1:], "weight_decay": 0.0}], 0.1, eps=1e-7
        ),
    ),
}


@pytest.mark.parametrize("clip", [None, 3.0])
@pytest.mark.parametrize("rule", list(RULES))
def test_forty_updates_are_those_of_torch(rule: str, clip: float | None) -> None:
    settings, build = RULES[rule]
    draws = np.random.default_rng(5)
    start = {path: draws.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    ours = {path: tf.Variable(value) for path, value in start.items()}
    config = OptimizerConfig(learning_rate=0.1, clip_norm=clip, **settings)
    optimizer = optim.Optimizer(config, ours, scale_loss=False)
    apply = tf.function(lambda grads: optimizer.apply(grads, tf.constant(0.1)))
    theirs = [torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in start.values()]
    reference = build(theirs)
    for _ in range(40):
        grads = {path: draws.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
        apply([tf.constant(g) for g in grads.values()])
        for parameter, grad in zip(theirs, grads.values(), strict=True):
            parameter.grad = torch.tensor(grad, dtype=torch.float64)
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs, clip)
        reference.step()
    for (path, mine), other in zip(ours.items(), theirs, strict=True):
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=5e-5, atol=5e-5, err_msg=path)
