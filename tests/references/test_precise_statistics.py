"""Recomputed statistics (PreciseBN) against Keras's layer, whose moving average is made the mean of all batches so far.

Wu and Johnson, arXiv 2105.07576, section 3: the population's statistics are the means of those of batches that the
weights, held still, are shown. With momentum 1 - 1/k in the k-th batch, a moving average is that mean.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import PARALLEL, memory_source, normalised
from tests.normalised import normalised_network
from tl_dist.data.order import Order
from tl_dist.data.pipeline import plain, train_batches
from tl_dist.worker.precise_statistics import averaging

NUM_BATCHES, BATCH = 5, 8


@pytest.mark.parametrize("policy", ["train", "sync"])
def test_they_are_the_mean_of_the_statistics_that_keras_computes_of_each_batch(policy: str) -> None:
    net, reference = normalised("all", policy), normalised_network((32, 32, 3))
    reference.set_weights(net.network.get_weights())
    for statistic in net.statistics.values():
        statistic.assign_add(tf.fill(statistic.shape, 0.7))  # where they begin is forgotten
    batches = list(
        train_batches(
            plain(memory_source(30, size=32), 32),
            Order(0, 30, BATCH),
            rows=range(BATCH),
            from_step=0,
            to_step=NUM_BATCHES,
        )
    )
    average = averaging(net, PARALLEL, global_batch=BATCH)
    feed = iter(
        tf.data.Dataset.from_tensor_slices(type(batches[0])(*map(tf.stack, zip(*batches, strict=True))))
    )
    for k, batch in enumerate(batches, start=1):
        average(feed, tf.constant(k, tf.int64))
        for layer in reference.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 1 - 1 / k
        reference(tf.cast(batch.images, tf.float32) / 127.5 - 1.0, training=True)
    for mine, theirs in zip(net.network.weights, reference.weights, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6, err_msg=mine.path)
