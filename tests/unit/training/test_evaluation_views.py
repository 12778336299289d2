"""Test-time views: a held-out example is evaluated by the mean of its probabilities over them, cached or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import PARALLEL, build, memory_source
from tl_dist.data.pipeline import Read, evaluation_batches, plain
from tl_dist.features import extraction
from tl_dist.features import views as feature_views
from tl_dist.models import classifier
from tl_dist.parallel import rows_of
from tl_dist.scores.evaluation import Evaluation
from tl_dist.training import evaluation, losses

SOURCE = memory_source(11, size=32)
BATCH = 4
VIEWS = ("flip", "dihedral")


def with_a_head(**settings: Any) -> classifier.Classifier:
    net = build(**settings)
    kernel = net.trainable["head/logits/kernel"]
    kernel.assign(tf.random.stateless_normal(kernel.shape, [1, 2]))
    return net


def evaluate(net: classifier.Classifier, read: Read, views: int) -> Evaluation:
    batches = evaluation_batches(read, 11, rows=rows_of(0, 1, BATCH), global_batch=BATCH)
    judge = evaluation.evaluation_step(net, losses.Objective(3, BATCH), PARALLEL, global_batch=BATCH, views=views)
    result = evaluation.evaluate("test", 11, 3, iter(batches), judge, PARALLEL, stop_requested=lambda: False)
    assert result is not None
    return result


def expected(net: classifier.Classifier) -> np.ndarray:
    """[examples, classes]: the mean over the sixteen views, made one by one."""
    total = np.zeros((11, 3))
    for image in range(2):
        flipped = SOURCE.store.images[:, :, ::-1] if image else SOURCE.store.images
        for mirror in range(2):
            seen = flipped[:, :, ::-1] if mirror else flipped
            for turns in range(4):
                turned = np.ascontiguousarray(np.rot90(seen, turns, axes=(1, 2)))
                total += tf.nn.softmax(net(tf.constant(turned))).numpy()
    return total / 16


def test_figures_are_those_of_the_mean_probabilities() -> None:
    net = with_a_head()
    result = evaluate(net, feature_views.in_views(plain(SOURCE, 32), VIEWS), 16)
    mean = expected(net)
    assert result.logits is not None
    np.testing.assert_allclose(np.exp(result.logits), mean, rtol=2e-4, atol=1e-6)
    own = mean[np.arange(11), SOURCE.labels]
    assert result.mean_loss == pytest.approx(float(-np.log(own).mean()), rel=1e-4)
    assert result.num_correct == int((mean.argmax(1) == SOURCE.labels).sum())
    plainly = evaluate(net, plain(SOURCE, 32), 1)
    assert plainly.mean_loss != pytest.approx(result.mean_loss, rel=1e-3)


def test_the_prefix_cache_keeps_the_views_of_held_out_examples(tmp_path: Path) -> None:
    net = with_a_head(train_from="block3")
    whole = evaluate(net, feature_views.in_views(plain(SOURCE, 32), ("dihedral",)), 8)
    prefix = extraction.Prefix(net.prefix, 32, {})
    features = extraction.Extraction(
        SOURCE,
        prefix,
        ("dihedral",),
        root=tmp_path,
        split="test",
        parallel=PARALLEL,
        stop_requested=lambda: False,
        say=lambda record: None,
    ).features()
    cached = evaluate(net.on_features(), feature_views.reader(features, SOURCE, None), 8)
    assert whole.logits is not None and cached.logits is not None
    np.testing.assert_allclose(cached.logits, whole.logits, rtol=1e-4, atol=1e-5)
    rows = np.array([3, 1, 7])
    read = feature_views.reader(features, SOURCE, None, held=rows)
    values, _ = read.rows(tf.range(3, dtype=tf.int64), tf.range(3, dtype=tf.int64))
    np.testing.assert_array_equal(values, features.array()[rows])
