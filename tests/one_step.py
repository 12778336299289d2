"""One training step of a small batch on one device: its loss and its gradients."""

from typing import Any

import numpy as np
import tensorflow as tf

from tests.doubles import PARALLEL
from tl_dist.config import ModelConfig, OptimizerConfig
from tl_dist.data.batch import Batch
from tl_dist.data.random import keep_masks
from tl_dist.models import classifier
from tl_dist.models.backbones import Backbone
from tl_dist.training import losses, optim, step

RATE, ROWS, CLASSES = 0.6, 4, 3
LABELS = [0, 1, 2, 1]


def built(backbone: Backbone, side: int, *, recomputes: bool = False, **settings: Any) -> classifier.Classifier:
    """A network none of whose layers gives what it gives at the start, when some give 0."""
    config = ModelConfig(backbone=backbone.name, weights="random", **({"train_from": "all"} | settings))
    net = classifier.Classifier(backbone, config, image_size=side, num_classes=CLASSES, seed=0, recomputes=recomputes)
    draws = np.random.default_rng(1)
    for variable in net.trainable.values():
        variable.assign_add(draws.normal(0, 0.05, variable.shape))
    return net


def batch_of(net: classifier.Classifier, side: int) -> Batch:
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, side, side, 3))
    batch = Batch.of(tf.constant(pixels, tf.uint8), tf.constant(LABELS), tf.range(ROWS, dtype=tf.int64))
    return batch._replace(masks=keep_masks(3, batch.positions, net.mask_rates)) if net.mask_rates else batch


def gradients_of(net: classifier.Classifier, side: int, **settings: Any) -> tuple[float, dict[str, np.ndarray]]:
    """Of one step on one device."""
    optimizer = optim.Optimizer(OptimizerConfig(learning_rate=0.1), net.trainable, scale_loss=False)
    objective = losses.Objective(CLASSES, ROWS)
    taken = step.TrainStep(net, optimizer, objective, PARALLEL, lambda k: tf.constant(0.1), **settings)
    sums = step.compiled(lambda batch: taken.gradients(taken.through_frozen(batch)))(batch_of(net, side))
    return float(sums.loss), dict(zip(net.trainable, (g.numpy() for g in sums.gradients), strict=True))


def assert_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerance: float) -> None:
    largest = max(np.abs(array).max() for array in theirs.values())
    for path, array in theirs.items():
        np.testing.assert_allclose(ours[path], array, rtol=0, atol=tolerance * largest, err_msg=path)
