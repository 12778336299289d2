"""Train chunk by chunk, in a generator that yields a Report when something is due; tell what is due when.

The loop owns no framework object, opens no file and knows no rank: it decides on totals from `parallel` alone, so that
all workers decide the same.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.parallel import DataParallel
from tl_dist.training.state import Report, TrainState

MAX_CHUNK_S = 2.0  # a stop is noticed within about this time


@dataclass(frozen=True)
class Cadence:
    """The steps at which events fall due: each of `every` is a period in steps, each of `once` a step."""

    every: Sequence[int]
    total_steps: int
    once: Sequence[int] = ()

    def steps_to_next(self, step: int) -> int:
        """Return the number of steps from `step` to the nearest event or the end."""
        ahead = [at - step for at in self.once if at > step]
        return min([period - step % period for period in self.every] + [self.total_steps - step, *ahead])


def is_due(step: int, period: int) -> bool:
    """Return whether an event of this period falls on `step` (never on 0)."""
    return step > 0 and step % period == 0


def train(
    state: TrainState,
    batches: Iterator[Any],
    run_steps: Callable[[Any, Any, Any], dict[str, Any]],
    parallel: DataParallel,
    *,
    cadence: Cadence,
    rate: Callable[[int], float],
    stop_requested: Callable[[], bool],
) -> Iterator[Report]:
    """Train from `state.step` to the end of the cadence, or until any worker is asked to stop.

    Yields after each chunk, with `state.step` already advanced; the last report of a stopped run has `stop` set, at
    the same step on all workers. One blocking exchange per chunk; no Python between the steps of a chunk.
    """
    step_s = float("inf")  # unknown: the first chunk is one step, which also compiles
    while state.step < cadence.total_steps:
        steps = max(1, min(cadence.steps_to_next(state.step), int(min(MAX_CHUNK_S / step_s, 1e6))))
        began = time.monotonic()
        sums = run_steps(batches, tf.constant(state.step, tf.int64), tf.constant(steps, tf.int32))
        values: dict[str, Any] = {key: float(value) for key, value in sums.items()}
        waits = np.zeros(parallel.world_size)
        waits[parallel.rank] = values.pop("data_wait_s")
        elapsed = time.monotonic() - began
        totals = parallel.total({**values, "data_wait_s": waits, "elapsed_s": elapsed, "stop": float(stop_requested())})
        state.advance(steps)
        elapsed_s = float(totals["elapsed_s"]) / parallel.world_size
        step_s = elapsed_s / steps
        stop = bool(totals["stop"] > 0)
        yield report_of(totals, step=state.step, steps=steps, elapsed_s=elapsed_s, rate=rate(state.step - 1), stop=stop)
        if stop:
            return


def report_of(totals: dict[str, Any], *, step: int, steps: int, elapsed_s: float, rate: float, stop: bool) -> Report:
    """Return the means and rates of a chunk from its totals."""
    examples = float(totals["examples"])
    return Report(
        step=step,
        steps=steps,
        mean_loss=float(totals["loss"]) / examples,
        accuracy=float(totals["correct"]) / examples,
        learning_rate=rate,
        gradient_norm=float(totals["norm"]),
        num_examples=round(examples),
        num_skipped=round(float(totals["skipped"])),
        loss_scale=float(totals["loss_scale"]),
        elapsed_s=elapsed_s,
        data_wait_s=[float(wait) for wait in totals["data_wait_s"]],
        reduction_s=float(totals["reduction_s"]),
        stop=stop,
    )
