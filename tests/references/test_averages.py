"""The moving average of the weights against timm's ModelEmaV3, and its first updates against TensorFlow's own."""

import numpy as np
import tensorflow as tf
import torch
from timm.utils import ModelEmaV3

from tl_dist.config import OptimizerConfig
from tl_dist.training import optim

DECAY, WARM, STEPS = 0.6, 13, 40  # (1 + n) / (10 + n) reaches 0.6 at n = 12.5


def test_the_average_is_tensorflows_at_first_and_timms_from_then_on() -> None:
    draws = np.random.default_rng(6)
    weight = tf.Variable(draws.normal(size=(4, 3)), dtype=tf.float32)
    config = OptimizerConfig(learning_rate=0.1, momentum=0.0, ema=DECAY)
    optimizer = optim.Optimizer(config, {"w": weight}, scale_loss=False)
    average = optimizer.averages["w"]
    shadow = weight.numpy().astype(float)
    module = torch.nn.Linear(3, 4, bias=False)
    for step in range(STEPS):
        if step == WARM:
            with torch.no_grad():
                module.weight.copy_(torch.tensor(average.numpy()))
            of_timm = ModelEmaV3(module, decay=DECAY)
        optimizer.apply([tf.constant(draws.normal(size=(4, 3)), tf.float32)], tf.constant(0.1))
        if step < WARM:
            # As tf.train.ExponentialMovingAverage documents `num_updates`.
            decay = min(DECAY, (1 + step) / (10 + step))
            shadow -= (1 - decay) * (shadow - weight.numpy())
            np.testing.assert_allclose(average, shadow, rtol=1e-5, atol=1e-6)
        else:
            with torch.no_grad():
                module.weight.copy_(torch.tensor(weight.numpy()))
            of_timm.update(module)
            np.testing.assert_allclose(average, of_timm.module.weight.detach().numpy(), rtol=1e-5, atol=1e-6)
