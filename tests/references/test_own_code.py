"""A model, a loss and data of one's own are trained as `model.fit` trains them, and on several workers as on one."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tl_dist as tl
from tests.own_code import BATCH, IMAGES, LABELS, STEPS, build, config, squared

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, as it saves


def recorded(run: Any) -> list[float]:
    return [record["loss"] for record in run.history()]


def in_order(run: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    """The batches of the run, by the order that it draws."""
    from tl_dist.data.order import Order

    order = Order(run.config.seed, len(images), BATCH)
    rows = [order.index(order.positions(step, tf.range(BATCH, dtype=tf.int64))).numpy() for step in range(STEPS)]
    return images[np.concatenate(rows)], labels[np.concatenate(rows)]


class Losses(keras.callbacks.Callback):  # type: ignore[misc]
    """The loss of each step of `fit`."""

    def __init__(self) -> None:
        super().__init__()
        self.of: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.reset_metrics()  # else the loss is the mean since the epoch began

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.of.append(logs["loss"])


ADAM = {"name": "adam", "learning_rate": 0.005}, keras.optimizers.Adam(0.005, epsilon=1e-7)
SGD = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}, keras.optimizers.SGD(0.1, momentum=0.9)


@pytest.mark.parametrize(("optimizer", "own_loss", "tolerance"), [(ADAM, False, 1e-5), (SGD, True, 1e-6)])
def test_the_losses_are_those_of_fit(tmp_path: Path, optimizer: Any, own_loss: bool, tolerance: float) -> None:
    keras.utils.set_random_seed(3)
    model = build()
    start = model.get_weights()
    cfg, loss = config("mine", optimizer=optimizer[0]), {"loss": squared} if own_loss else {}
    run = tl.train(cfg, model=model, data=(IMAGES[:1000], LABELS[:1000]), runs=tmp_path, here=True, **loss)
    assert run.config.model.weights == "function" and run.config.model.train_from == "all"
    # In Keras the loss of rows is their mean, as here; `fit` gets the batches in the order of the run.
    model.set_weights(start)
    of_keras = squared if own_loss else "sparse_categorical_crossentropy"
    model.compile(optimizer[1], loss=of_keras)
    losses, train = Losses(), tl.open_dataset(run.config)["train"]
    rows = np.array([int(name.split(":")[1]) for name in train.ids])
    images, labels = in_order(run, IMAGES[rows], LABELS[rows])
    model.fit(images.astype(np.float32), labels, BATCH, 1, 0, callbacks=[losses], shuffle=False)
    assert np.allclose(recorded(run), losses.of, rtol=tolerance), (recorded(run), losses.of)
    assert np.mean(losses.of[-5:]) < 0.97 * np.mean(losses.of[:5])
    probabilities = model.predict(IMAGES[1000:1100].astype(np.float32), verbose=0)
    assert np.allclose(run.keras_model().predict(IMAGES[1000:1100], verbose=0), probabilities, atol=1e-4)
    assert json.loads((run.path / "run.json").read_text())["extensions"]


def test_two_workers_train_as_one_does(tmp_path: Path) -> None:
    data = {"train": (IMAGES[:600], LABELS[:600]), "validation": (IMAGES[600:900], LABELS[600:900])}
    metrics = {"right": lambda targets, answers: float((answers.argmax(1) == targets).mean())}
    evaluations: list[Any] = []
    given = {"model": build, "loss": squared, "metrics": metrics, "data": data, "runs": tmp_path}
    one = tl.train(config("one"), here=True, **given)
    two = tl.train(config("two"), workers=2, strategy="collective", on_evaluation=evaluations.append, **given)
    assert np.allclose(recorded(one), recorded(two), rtol=1e-5)
    for run in (one, two):
        figures = run.scores["validation"]
        assert figures["right"] == figures["accuracy"]
    assert evaluations[-1].figures["right"] == two.scores["validation"]["accuracy"]
    assert np.allclose(
        one.predictions("validation").probabilities, two.predictions("validation").probabilities, atol=1e-5
    )
