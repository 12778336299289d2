"""Sums of an evaluation are those of scikit-learn and Keras over the same logits: confusion, accuracy, loss."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics

from tests.doubles import PARALLEL, build, memory_source
from tl_dist.data.pipeline import evaluation_batches, plain
from tl_dist.parallel import rows_of
from tl_dist.training import evaluation, losses


def test_confusion_accuracy_and_loss() -> None:
    """Of 53 examples in batches of 8, the last of them with 3 rows of padding; by true class, then predicted class."""
    labels = np.random.default_rng(1).choice(3, 53, p=[0.6, 0.3, 0.1]).astype(np.int32)
    source = replace(memory_source(53, size=32), labels=labels)
    net = build()
    kernel = net.trainable["head/logits/kernel"]
    kernel.assign(10 * tf.random.stateless_normal(kernel.shape, [1, 2]))
    batches = evaluation_batches(plain(source, 32), 53, rows=rows_of(0, 1, 8), global_batch=8)
    judge = evaluation.evaluation_step(net, losses.Objective(3, 8), PARALLEL, global_batch=8)
    found = evaluation.evaluate("test", 53, 7, iter(batches), judge, PARALLEL, stop_requested=lambda: False)
    assert found is not None
    logits = net(tf.constant(source.store.images)).numpy()
    expected = metrics.confusion_matrix(source.labels, logits.argmax(axis=1), labels=range(3))
    assert (expected != expected.T).any()
    np.testing.assert_array_equal(found.confusion, expected)
    assert found.num_correct == metrics.accuracy_score(source.labels, logits.argmax(axis=1), normalize=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(source.labels, logits)
    assert found.mean_loss == pytest.approx(float(loss), rel=1e-5)
