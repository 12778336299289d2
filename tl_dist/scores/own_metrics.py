"""Figures that the user has written, of all targets and answers of a split at once: exact on any number of workers."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tl_dist.config import code
from tl_dist.scores.clusters import Groups
from tl_dist.scores.figures import Judge

OWN = "own"
"""the figure that holds the names of the user's own"""


def judged(judge: Judge, metrics: Mapping[str, str], truth: Any, answers: Any, groups: Groups = ()) -> dict[str, Any]:
    """Return the figures of `judge`, and those of `metrics`, functions by the names of their figures.

    A function gets `truth` and the answers float32 [examples, classes or targets]; a metric of Keras is updated once.
    Refuses (64) a function that raises or returns anything but a number. What is not finite is None.
    """
    values = judge(truth, answers, groups)
    if not metrics:
        return values
    whole = np.array(answers[:], np.float32)
    own = {name: _value(name, function, truth.copy(), whole.copy()) for name, function in metrics.items()}
    return values | own | {OWN: [*own]}


def _value(name: str, function: str, truth: Any, answers: Any) -> float | None:
    who = f"metric {name}, '{code.short(function)}',"

    def compute() -> Any:
        metric = code.load(function, who)
        if not hasattr(metric, "update_state"):
            return metric(truth, answers)
        metric.reset_state()
        metric.update_state(truth, answers)
        return metric.result()

    value = np.asarray(code.called(function, who, compute))
    if value.size != 1 or value.dtype.kind not in "fiub":
        raise code.refused(who, f"returned {value.dtype} of shape {value.shape}", "return one number for all examples")
    number = float(value.reshape(()))
    return number if math.isfinite(number) else None


def judge_with(judge: Judge, metrics: Mapping[str, str]) -> Judge:
    """Return `judge` with the user's `metrics`."""
    return partial(judged, judge, metrics) if metrics else judge
