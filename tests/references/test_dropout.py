"""Dropout against keras.layers.Dropout: in training what is kept is scaled, in evaluation nothing is done."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tests.doubles import PARALLEL, build, memory_source
from tl_dist.data.order import Order
from tl_dist.data.pipeline import dropout_masks, evaluation_batches, plain, train_batches
from tl_dist.training import evaluation, losses

SOURCE = memory_source(11, size=32)
BATCH = 4


@pytest.mark.parametrize("dropout", [0.25, 0.8])
def test_evaluation_gives_exactly_the_logits_of_keras(dropout: float) -> None:
    net = build(dropout=dropout)
    values = np.random.default_rng(0)
    kernel, bias = net.trainable["head/logits/kernel"], net.trainable["head/logits/bias"]
    kernel.assign(values.normal(size=kernel.shape))
    bias.assign(values.normal(size=bias.shape))
    head = keras.Sequential([keras.layers.Dropout(dropout), keras.layers.Dense(3)])
    head.build((None, kernel.shape[0]))
    head.set_weights([kernel.numpy(), bias.numpy()])

    batches = evaluation_batches(plain(SOURCE, 32), 11, rows=range(BATCH), global_batch=BATCH)
    judge = evaluation.evaluation_step(net, losses.Objective(3, BATCH), PARALLEL, global_batch=BATCH)
    found = evaluation.evaluate("test", 11, 3, iter(batches), judge, PARALLEL, stop_requested=lambda: False)
    assert found is not None and found.logits is not None
    # In the same batches: a kernel may add up a batch of another size in another order.
    padded = [SOURCE.store.images[np.minimum(np.arange(k, k + BATCH), 10)] for k in (0, 4, 8)]
    judged = tf.function(lambda images: head(net.prefix(images), training=False))
    expected = [judged(tf.constant(images)) for images in padded]
    np.testing.assert_array_equal(found.logits, np.concatenate(expected)[:11])


def test_training_gives_keras_values_each_as_often() -> None:
    """Of features that are 1, seen through a head that passes them on."""
    dropout, features = 0.4, 64
    net = build(dropout=dropout)
    net.trainable["head/logits/kernel"].assign(np.eye(features, 3))
    order = Order(0, 11, 11)
    masks = dropout_masks(order, features * [dropout])
    batches = train_batches(plain(SOURCE, 32), order, rows=range(11), steps=range(1000), transforms=[masks])
    ones = tf.ones([11, features])
    seen = np.concatenate([net.suffix(ones, batch.masks).numpy() for batch in batches]).ravel()
    theirs = keras.layers.Dropout(dropout, seed=1)(tf.ones([33_000]), training=True).numpy()
    np.testing.assert_allclose(np.unique(seen), np.unique(theirs), rtol=1e-6)
    kept = [int((values > 0).sum()) for values in (seen, theirs)]
    assert stats.binomtest(kept[0], seen.size, 1 - dropout).pvalue > 1e-3
    table = [kept, [seen.size - kept[0], theirs.size - kept[1]]]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    assert seen.mean() == pytest.approx(1.0, abs=4 * np.sqrt(dropout / (1 - dropout) / seen.size))
