"""Fifty steps against `keras.Model.fit` from the same weights, on the same batches in the same order.

The rival is built, compiled and trained by Keras alone: nothing of tl_dist runs in it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import PARALLEL, labelled
from tests.normalised import NORMALISED, normalised_network
from tl_dist.config import ModelConfig, OptimizerConfig, registry
from tl_dist.data.order import Order
from tl_dist.data.pipeline import plain, train_batches
from tl_dist.models import classifier
from tl_dist.training import chunk, losses, optim, step

NUM_STEPS, BATCH, SIZE, CLASSES = 50, 8, 32, 3
NOISE = np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8)
SHADES = (80 * (np.arange(40) % CLASSES)[:, None, None, None]).astype(np.uint8)  # by class: learnable
SOURCE = labelled(NOISE // 3 + SHADES, CLASSES)


def momentum_rule() -> tuple[OptimizerConfig, Any]:
    return (
        OptimizerConfig(name="sgd", learning_rate=0.02, momentum=0.9),
        keras.optimizers.SGD(0.02, momentum=0.9),
    )


def adamw_rule() -> tuple[OptimizerConfig, Any]:
    # At a higher rate equal rules part by more than 1e-5 after 20 steps: Adam's step does not shrink with rounding.
    theirs = keras.optimizers.AdamW(1e-4, weight_decay=0.05, global_clipnorm=1.0)
    theirs.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    ours = OptimizerConfig(name="adamw", learning_rate=1e-4, weight_decay=0.05, clip_norm=1.0)
    return ours, theirs


def both(backbone: str, reference_network: Callable[..., Any], **settings: Any) -> tuple[classifier.Classifier, Any]:
    """Ours, and Keras's with the same weights, which rescales images by a layer of its own."""
    record = NORMALISED if backbone == "normalised" else registry.backbone(backbone)
    config = ModelConfig(backbone=backbone, weights="random", train_from="all", **settings)
    ours = classifier.Classifier(record, config, image_size=SIZE, num_classes=CLASSES, seed=3)
    network = reference_network((SIZE, SIZE, 3))
    inputs = keras.Input((SIZE, SIZE, 3))
    x = network(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs))
    x = keras.layers.GlobalAveragePooling2D()(x)
    theirs = keras.Model(inputs, keras.layers.Dense(CLASSES, kernel_initializer="zeros")(x))
    network.set_weights(ours.network.get_weights())
    return ours, theirs


def batches() -> tf.data.Dataset:
    return train_batches(plain(SOURCE, SIZE), Order(0, 40, BATCH), rows=range(BATCH), steps=range(NUM_STEPS))


def trained(net: classifier.Classifier, config: OptimizerConfig) -> list[float]:
    """The loss of each of our steps."""
    optimizer = optim.Optimizer(config, net.trainable, scale_loss=False)
    rate = partial(optim.learning_rate, config, steps_per_epoch=5, total_steps=NUM_STEPS)
    run_steps = chunk.train_chunk(step.TrainStep(net, optimizer, losses.Objective(CLASSES, BATCH), PARALLEL, rate))
    feed, one = iter(batches()), tf.constant(1, tf.int64)
    return [float(run_steps(feed, tf.constant(k, tf.int64), one)["loss"]) / BATCH for k in range(NUM_STEPS)]


def fitted(theirs: Any, optimizer: Any) -> list[float]:
    """The loss of each of Keras's: an epoch is one batch."""
    theirs.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    rows = tf.data.Dataset.from_tensor_slices(
        tuple(np.stack(values) for values in zip(*((b.images, b.labels) for b in batches()), strict=True))
    )
    history = theirs.fit(rows.repeat(), epochs=NUM_STEPS, steps_per_epoch=1, shuffle=False, verbose=0)
    return list(history.history["loss"])


PLAIN = "tiny", registry.backbone("tiny").build, {}
BATCH_NORM = "normalised", normalised_network, {"batch_norm": "sync"}
OTHER_MOMENTUM = (
    "normalised",
    partial(normalised_network, momentum=0.99),
    {"batch_norm": "train", "batch_norm_momentum": 0.99},
)


@pytest.mark.parametrize(
    ("backbone", "network", "settings", "rule"),
    [
        pytest.param(*PLAIN, adamw_rule, id="plain"),
        pytest.param(*BATCH_NORM, momentum_rule, id="batch norm"),
        pytest.param(*PLAIN, momentum_rule, id="plain, momentum", marks=pytest.mark.full),
        pytest.param(*BATCH_NORM, adamw_rule, id="batch norm, adamw", marks=pytest.mark.full),
        pytest.param(*OTHER_MOMENTUM, adamw_rule, id="batch norm of another momentum, adamw"),
        pytest.param(*OTHER_MOMENTUM, momentum_rule, id="batch norm of another momentum", marks=pytest.mark.full),
    ],
)
def test_fifty_steps_have_the_losses_of_fit_and_end_with_its_outputs(
    backbone: str,
    network: Callable[..., Any],
    settings: dict[str, Any],
    rule: Callable[[], tuple[OptimizerConfig, Any]],
) -> None:
    config, optimizer = rule()
    ours, theirs = both(backbone, network, **settings)
    losses = trained(ours, config)
    np.testing.assert_allclose(losses, fitted(theirs, optimizer), rtol=1e-5)
    assert losses[-1] < 0.99 * losses[0]  # the curve is not flat
    np.testing.assert_allclose(
        ours(tf.constant(SOURCE.store.images)),
        theirs.predict(SOURCE.store.images, verbose=0),
        rtol=1e-3,
        atol=1e-4,
    )
    statistics = {v.path.rpartition("/")[0].rpartition("/")[2] + "/" + v.name: v for v in theirs.weights}
    for path, statistic in ours.statistics.items():
        expected = statistics[path.removeprefix("backbone/")]
        np.testing.assert_allclose(statistic, expected, rtol=1e-4, atol=1e-5, err_msg=path)
    assert len(ours.statistics) == (4 if settings else 0)
