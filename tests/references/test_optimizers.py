"""Update rules and clipping against torch.optim and timm's LARS and LAMB, in float64."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from timm.optim import Lamb, Lars

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
    # timm, as the papers' authors, adapts no bias and decays none: those with weight_decay 0, unless told otherwise.
    "lars": (
        {"name": "lars", "trust_coefficient": 0.02, "weight_decay": 0.05},
        lambda p: Lars(grouped(p, 0.05), 0.1, momentum=0.9, trust_coeff=0.02),
    ),
    "lars, nesterov": (
        {"name": "lars", "trust_coefficient": 0.02, "nesterov": True},
        lambda p: Lars(grouped(p, 0.0), 0.1, momentum=0.9, nesterov=True, trust_coeff=0.02),
    ),
    "lars, no momentum": (
        {"name": "lars", "trust_coefficient": 0.02, "momentum": 0.0, "weight_decay": 0.05},
        lambda p: Lars(grouped(p, 0.05), 0.1, trust_coeff=0.02),
    ),
    "lamb": (
        {"name": "lamb", "weight_decay": 0.05},
        lambda p: Lamb(grouped(p, 0.05), 0.1, eps=1e-7, max_grad_norm=None),
    ),
    "lamb, no decay": (
        {"name": "lamb"},
        lambda p: Lamb(grouped(p, 0.0), 0.1, eps=1e-7, max_grad_norm=None),
    ),
}


def grouped(parameters: list[Any], decay: float) -> list[dict[str, Any]]:
    """The kernel, whose updates are adapted, and the bias, whose are not."""
    kernel, bias = parameters[:1], parameters[1:]
    return [
        {"params": kernel, "weight_decay": decay, "always_adapt": True},
        {"params": bias, "weight_decay": 0.0, "always_adapt": False},
    ]


@pytest.mark.parametrize("clip", [None, 3.0])
@pytest.mark.parametrize("rule", list(RULES))
def test_forty_updates_are_those_of_the_reference(rule: str, clip: float | None) -> None:
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
