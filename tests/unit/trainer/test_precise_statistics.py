"""After few steps evaluation normalizes by statistics that fit the weights; training's own are not disturbed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import PARALLEL, given_to, normalised, setup_of
from tl_dist.config import Config, DataConfig, ModelConfig, OptimizerConfig
from tl_dist.data.order import Order
from tl_dist.data.pipeline import evaluation_batches, plain, train_batches
from tl_dist.datasets.formats.digits import open_digits
from tl_dist.models import classifier
from tl_dist.runs.directory import RunDir
from tl_dist.runs.heartbeats import Heartbeats
from tl_dist.trainer.precise_statistics import PreciseStatistics
from tl_dist.training import chunk, evaluation, losses, optim, step

STEPS, BATCH = 60, 32
SPLITS = open_digits(DataConfig(name="digits"))


def trained() -> classifier.Classifier:
    """After sixty steps with the momentum of MobileNet: its statistics are nearly those of the begin."""
    net = normalised("all", "sync", num_classes=10, batch_norm_momentum=0.999, pooling="flatten")
    optimizer = optim.Optimizer(OptimizerConfig(name="adam", learning_rate=0.003), net.trainable, scale_loss=False)
    run_steps = chunk.train_chunk(
        step.TrainStep(net, optimizer, losses.Objective(10, BATCH), PARALLEL, lambda k: tf.constant(0.003))
    )
    order = Order(0, SPLITS["train"].num_examples, BATCH)
    batches = train_batches(plain(SPLITS["train"], 32), order, rows=range(BATCH), steps=range(STEPS))
    run_steps(iter(batches), tf.constant(0, tf.int64), tf.constant(STEPS, tf.int64))
    return net


def precise_of(
    net: classifier.Classifier, tell: Any = print, *, at: int = STEPS, total_steps: int = 1000
) -> PreciseStatistics:
    """The recomputation of a run that has done `at` steps."""
    cfg = Config(
        name="x",
        steps=total_steps,
        global_batch=BATCH,
        data=DataConfig(name="digits"),
        model=ModelConfig(backbone="tiny"),
        optimizer=OptimizerConfig(learning_rate=0.01),
    )

    class Quiet(Heartbeats):
        def beat(self, *_: Any) -> None:
            pass

    run = RunDir(Path("runs/x"))
    run.beats = Quiet(run.heartbeats)
    setup = setup_of(cfg, SPLITS, net, run=run, step=at)
    given = replace(given_to(setup), read_train=plain(SPLITS["train"], 32))
    return PreciseStatistics(setup, given, tell)


def accuracy(net: classifier.Classifier) -> float:
    num = SPLITS["test"].num_examples
    batches = evaluation_batches(plain(SPLITS["test"], 32), num, rows=range(BATCH), global_batch=BATCH)
    judge = evaluation.evaluation_step(net, losses.Objective(10, BATCH), PARALLEL, global_batch=BATCH)
    computed = evaluation.evaluate(
        "test", num, -(-num // BATCH), iter(batches), judge, PARALLEL, stop_requested=lambda: False
    )
    assert computed is not None
    return computed.accuracy


def statistics(net: classifier.Classifier) -> dict[str, np.ndarray]:
    return {path: variable.numpy() for path, variable in net.statistics.items()}


def test_a_short_run_is_evaluated_by_what_its_weights_give_and_goes_on_undisturbed() -> None:
    net, notes = trained(), []
    moving, stale = statistics(net), accuracy(net)
    precise = precise_of(net, notes.append)
    with precise.in_force():
        first, fitting = statistics(net), accuracy(net)
    assert stale < 0.6 and fitting > 0.9
    with precise.in_force():
        again = statistics(net)
    for path, value in statistics(net).items():
        np.testing.assert_array_equal(value, moving[path])
        np.testing.assert_array_equal(again[path], first[path])  # of the weights and the step alone
    (record,) = notes
    assert record["text"].startswith(
        "before step 3,000 batch norm is evaluated by statistics recomputed over 1,024 training images"
    )
    precise.compute()  # as at the end of a stage
    for path, value in statistics(net).items():
        np.testing.assert_array_equal(value, first[path])


def test_they_are_those_of_the_1024_images_that_come_next() -> None:
    """By NumPy, of the layer that no other one normalizes for."""
    net, at, number = normalised("all", "sync", num_classes=10), 5, 1024 // BATCH
    precise_of(net, at=at).compute()
    order = Order(0, SPLITS["train"].num_examples, BATCH)
    batches = train_batches(plain(SPLITS["train"], 32), order, rows=range(BATCH), steps=range(at, at + number))
    conv1 = keras.Model(net.network.inputs, net.network.get_layer("conv1").output)
    outputs = np.stack([conv1(tf.cast(b.images, tf.float32) / 127.5 - 1.0) for b in batches]).astype(float)
    computed = statistics(net)
    expected = {"mean": outputs.mean(axis=(0, 1, 2, 3)), "variance": outputs.var(axis=(0, 1, 2, 3))}
    for name, value in expected.items():
        np.testing.assert_allclose(computed[f"backbone/norm1/moving_{name}"], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("at", "total_steps"), [(3000, 5000), (1000, 1000)], ids=["enough steps", "the end"])
def test_statistics_that_have_moved_enough_or_are_computed_for_good_stay(at: int, total_steps: int) -> None:
    net, notes = normalised("all", "sync", num_classes=10, batch_norm_momentum=0.999), []
    before = statistics(net)
    with precise_of(net, notes.append, at=at, total_steps=total_steps).in_force():
        for path, value in statistics(net).items():
            np.testing.assert_array_equal(value, before[path])
    assert not notes


def test_where_no_statistic_moves_none_is_recomputed() -> None:
    precise = precise_of(normalised("all", "inference", num_classes=10))
    assert not precise.needed
