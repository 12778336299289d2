"""Decide by figures of the validation split: the best steps of a stage, an early stop, a lower learning rate.

A state machine of JSON, kept in the history of a run: the same figures decide the same. As Keras's callbacks do.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from tl_dist.config import Config
from tl_dist.config.model_selection import FIGURES, figure_of
from tl_dist.config.stages import Stage

KEY = "monitor"  # of the monitor's state in the history of a run


class Decision(NamedTuple):
    """The decision after one evaluation."""

    among_best: bool = False  # so that the weights must be kept
    lowered: bool = False  # the learning rate, from the next step on


class Monitor:
    """Monitor one stage; resume from `history` if that is of the same stage, and keep the state in it."""

    def __init__(self, cfg: Config, stage: Stage, history: dict[str, Any]) -> None:
        self._best = cfg.checkpoint.best
        self._num_best = cfg.checkpoint.average or 1
        self._stopping = cfg.early_stopping
        self._schedule = stage.optimizer.schedule
        self._rate = stage.optimizer.learning_rate
        if history.get(KEY, {}).get("stage") != stage.number:
            watched = {"best": None, "step": -1, "waited": 0}
            history[KEY] = {"stage": stage.number, "step": -1, "best": []}
            history[KEY] |= {"stopping": watched, "plateau": {**watched}, "factor": 1.0, "stopped": False}
        self._state: dict[str, Any] = history[KEY]

    @property
    def step(self) -> int:
        """The step of the last evaluation; -1 before the first."""
        return int(self._state["step"])

    @property
    def stopped(self) -> bool:
        """Whether the stage is to end here."""
        return bool(self._state["stopped"])

    @property
    def factor(self) -> float:
        """The plateau's factor on the learning rate."""
        return float(self._state["factor"])

    @property
    def best(self) -> list[tuple[int, float]]:
        """The best steps and their figures, the best first; of equal figures the earlier step."""
        return [(step, value) for step, value in self._state["best"]]

    @property
    def waited(self) -> int:
        """The number of evaluations since the one that early stopping compares with."""
        return int(self._state["stopping"]["waited"])

    @property
    def to_beat(self) -> tuple[int, float | None]:
        """The step and the figure that early stopping compares with; None before there was a number."""
        return self._state["stopping"]["step"], self._state["stopping"]["best"]

    def feed(self, step: int, figures: Mapping[str, float]) -> Decision:
        """Decide by the figures of an evaluation after `step` steps, NaN where undefined. A step counts once."""
        if step <= self.step:
            return Decision()
        self._state["step"] = step
        among_best = lowered = False
        figure = figure_of(self._best.metric) if self._best is not None else None
        if figure is not None and not math.isnan(figures[figure]):
            sign = -1 if FIGURES.get(figure, "max") == "max" else 1
            ranked = sorted([*self.best, (step, figures[figure])], key=lambda pair: (sign * pair[1], pair[0]))
            self._state["best"] = [list(pair) for pair in ranked[: self._num_best]]
            among_best = [step, figures[figure]] in self._state["best"]
        if self._stopping is not None:
            watched, settings = self._state["stopping"], self._stopping
            _compare(watched, step, figures, figure_of(settings.metric), settings.min_delta)
            self._state["stopped"] = watched["waited"] >= settings.patience
        if (schedule := self._schedule).name == "plateau":
            watched = self._state["plateau"]
            assert schedule.metric is not None
            _compare(watched, step, figures, figure_of(schedule.metric), schedule.min_delta)
            factor = max(self.factor * schedule.drop_factor, schedule.min_rate / self._rate)
            if watched["waited"] >= schedule.patience and factor < self.factor:
                self._state["factor"], watched["waited"], lowered = factor, 0, True
        return Decision(among_best, lowered)


def best_steps(history: Mapping[str, Any]) -> list[int]:
    """Return the steps whose weights a run with this history may still need, the best first."""
    return [step for step, _ in history.get(KEY, {}).get("best", ())]


def better(figure: str, value: float, than: float | None, min_delta: float = 0.0) -> bool:
    """Return whether a figure has improved by more than `min_delta`; any number is better than None."""
    if than is None or math.isnan(value):
        return not math.isnan(value)
    return value - min_delta > than if FIGURES.get(figure, "max") == "max" else value + min_delta < than


def _compare(watched: dict[str, Any], step: int, figures: Mapping[str, float], figure: str, min_delta: float) -> None:
    """Count the evaluations since the last improvement by `min_delta`."""
    if better(figure, figures[figure], watched["best"], min_delta):
        watched.update(best=figures[figure], step=step, waited=0)
    else:
        watched["waited"] += 1
