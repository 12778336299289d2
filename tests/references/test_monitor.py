"""Early stopping, the plateau and the best checkpoint decide as Keras's callbacks do, on the same series of figures."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tl_dist import tasks
from tl_dist.config import Config
from tl_dist.config.model_selection import FIGURES, OF_TASK
from tl_dist.config.stages import plan
from tl_dist.scores import figures
from tl_dist.training.monitor import Monitor

RATE = 0.1


def monitor_of(history: dict[str, Any], **settings: Any) -> Monitor:
    schedule = settings.pop("schedule", {})
    cfg = Config.model_validate(
        {
            "name": "x", "steps": 10_000, "data": {"name": "digits"}, "model": {"backbone": "tiny"},
            "optimizer": {"learning_rate": RATE, "schedule": schedule}, **settings,
        }
    )  # fmt: skip
    return Monitor(cfg, plan(cfg, lambda epochs: 1)[0], history)


def series(seed: int) -> np.ndarray:
    """Thirty figures that get better, then no longer do; of two decimals, so that there are ties, also by min_delta."""
    rng = np.random.default_rng(seed)
    gain = 0.3 * (1 - np.exp(-np.arange(30) / rng.uniform(1, 20)))
    return np.round(0.5 + gain + rng.normal(0, rng.choice([0.005, 0.05]), 30), 2)


def keras_model() -> Any:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(RATE), loss="mse")
    return model


CASES = [
    (seed, metric, patience, delta)
    for seed, (metric, patience, delta) in enumerate(
        (metric, patience, delta)
        for metric in ("validation.log_loss", "mcc")
        for patience in (1, 3, 8)
        for delta in (0.0, 0.01, 0.05)
    )
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, as it reads its rate
def test_they_decide_as_keras_does_in_any_number_of_attempts(tmp_path: Path) -> None:
    """The state goes through JSON after each evaluation, as it does through a checkpoint."""
    stops, drops = [], []
    for seed, metric, patience, delta in CASES:
        figure = metric.removeprefix("validation.")
        mode = FIGURES[figure]
        model = keras_model()
        early = keras.callbacks.EarlyStopping(figure, min_delta=delta, patience=patience, mode=mode)
        plateau = keras.callbacks.ReduceLROnPlateau(
            figure, factor=0.3, patience=patience, mode=mode, min_delta=delta, min_lr=0.004
        )
        saved = keras.callbacks.ModelCheckpoint(
            tmp_path / "best.weights.h5",
            monitor=figure,
            mode=mode,
            save_best_only=True,
            save_weights_only=True,
        )
        for callback in (early, plateau, saved):
            callback.set_model(model)
            callback.on_train_begin()
        model.stop_training = False
        history: dict[str, Any] = {}
        settings = {
            "checkpoint": {"best": {"metric": metric}, "average": 3},
            "early_stopping": {"metric": metric, "patience": patience, "min_delta": delta},
            "schedule": {
                "name": "plateau", "metric": metric, "patience": patience, "min_delta": delta,
                "drop_factor": 0.3, "min_rate": 0.004,
            },
        }  # fmt: skip
        stopped, best = None, (0, 0.0)
        values = series(seed) if mode == "max" else np.round(1 - series(seed), 2)
        for epoch, value in enumerate(values.tolist()):
            before = saved.best
            for callback in (early, plateau, saved):
                callback.on_epoch_end(epoch, {figure: value})
            if saved.best != before:
                best = (epoch + 1, value)
            monitor = monitor_of(history, **settings)
            monitor.feed(epoch + 1, {figure: value})
            monitor.feed(epoch + 1, {figure: 1e9})  # evaluated again: already decided
            history = json.loads(json.dumps(history))
            assert monitor.best[0] == best
            assert RATE * monitor.factor == pytest.approx(float(model.optimizer.learning_rate), rel=1e-6)
            if stopped is None:
                assert monitor.stopped == model.stop_training, (seed, epoch)
                stopped = epoch if monitor.stopped else None
        stops.append(stopped)
        drops.append(monitor.factor)
    # Cases that never stop, or all drop as far as they may, would prove nothing.
    assert None in stops and len(set(stops)) > 8
    assert len({round(drop, 6) for drop in drops}) == 4


def test_the_best_few_are_those_of_numpy_and_of_equal_ones_the_earlier() -> None:
    for seed in range(20):
        for metric, sign in (("accuracy", -1), ("ece", 1)):
            history: dict[str, Any] = {}
            monitor = monitor_of(history, checkpoint={"best": {"metric": metric}, "average": 4})
            values = series(seed)
            for step, value in enumerate(values):
                decision = monitor.feed(step, {metric: value})
                expected = np.argsort(sign * values[: step + 1], kind="stable")[:4]
                assert [best for best, _ in monitor.best] == expected.tolist()
                assert decision.among_best == (step in expected)


def test_a_figure_that_is_no_number_is_never_better() -> None:
    monitor = monitor_of(
        {}, checkpoint={"best": {"metric": "log_loss"}}, early_stopping={"metric": "log_loss", "patience": 2}
    )
    for step, value in enumerate([float("nan"), 0.5, float("nan")]):
        assert monitor.feed(step, {"log_loss": value}).among_best == (step == 1)
    assert monitor.best == [(1, 0.5)] and not monitor.stopped
    monitor.feed(3, {"log_loss": float("nan")})
    assert monitor.stopped and monitor.to_beat == (1, 0.5)


def test_the_figures_that_may_decide_are_the_numbers_of_an_evaluation_and_each_knows_its_better_end() -> None:
    """Told by one model of each task that is right and sure, and one that is wrong and sure."""
    labels = np.array([0, 1, 2, 0, 1, 2], np.int32)
    right = figures.softmax(10 * np.eye(3)[labels])
    wrong = figures.softmax(10 * np.eye(3)[(labels + 1) % 3])
    has = np.eye(3, dtype=np.float32)[labels]
    numbers = np.arange(6, dtype=np.float32)[:, None]
    answers = {
        "classification": (labels, right, wrong),
        "ordinal": (labels, right, wrong),
        "multilabel": (has, 0.9 * has + 0.05, 0.95 - 0.9 * has),
        "regression": (numbers, numbers + 0.1, 5 - numbers),
    }
    assert answers.keys() == OF_TASK.keys()
    for task, (truth, *both) in answers.items():
        good, bad = (tasks.named(task).figures(truth, each) for each in both)
        single = {name for name, value in good.items() if isinstance(value, float)} - {"hamming_loss"}
        assert single == {*OF_TASK[task]}
        for name in single:
            assert (good[name] > bad[name]) == (FIGURES[name] == "max"), (task, name)
