"""The training loop, as a generator that yields a Report when something is due; evaluation; and what is due when.

The loop owns no framework object, opens no file and knows no rank: it asks `parallel` for totals, and everything it
decides, it decides on totals, so that all workers decide the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.parallel import DataParallel, rows_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.state import Evaluation, Report, TrainState
from tl_dist.step import example_hash

MAX_CHUNK_S = 2.0  # a stop is noticed within about this time
MAX_LOGITS = 1 << 26  # of a split that rank 0 gathers: 256 MiB, ImageNet's 50,000 x 1,000 among them
PIECE_BYTES = 8 << 20  # of logits that are exchanged at a time


@dataclass(frozen=True)
class Cadence:
    """Which events fall due at which step; each of `every` is a period in steps."""

    every: Sequence[int]
    total_steps: int

    def steps_to_next(self, step: int) -> int:
        """Steps from `step` to the nearest event or to the end."""
        return min([period - step % period for period in self.every] + [self.total_steps - step])


def is_due(step: int, period: int) -> bool:
    """Whether an event of this period falls on `step` (never on 0)."""
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
        sums = run_steps(batches, tf.constant(state.step, tf.int64), tf.constant(steps, tf.int64))
        values: dict[str, Any] = {key: float(value) for key, value in sums.items()}
        waits = np.zeros(parallel.world_size)
        waits[parallel.rank] = values.pop("data_wait_s")
        elapsed = time.monotonic() - began
        totals = parallel.total(
            {**values, "data_wait_s": waits, "elapsed_s": elapsed, "stop": float(stop_requested())}
        )
        state.step += steps
        elapsed_s = float(totals["elapsed_s"]) / parallel.world_size
        step_s = elapsed_s / steps
        stop = bool(totals["stop"] > 0)
        yield report_of(
            totals, step=state.step, steps=steps, elapsed_s=elapsed_s, rate=rate(state.step - 1), stop=stop
        )
        if stop:
            return


def report_of(
    totals: dict[str, Any], *, step: int, steps: int, elapsed_s: float, rate: float, stop: bool
) -> Report:
    """Means and rates of a chunk from its totals."""
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


def evaluate(
    split: str,
    num_examples: int,
    num_batches: int,
    batches: Iterator[Any],
    evaluate_batch: Callable[[Any], dict[str, Any]],
    parallel: DataParallel,
    *,
    stop_requested: Callable[[], bool],
) -> Evaluation | None:
    """Figures over all `num_examples`, each counted once whatever the worker count; None if asked to stop.

    Refuses a result that does not stand for exactly N of N examples: a hash of the indices that were seen is
    compared with that of all of them.
    """
    sums: dict[str, Any] = {}
    gathered: _Logits | None = None
    interval, next_check, checked = 1, 1, time.monotonic()
    for done in range(1, num_batches + 1):
        found = evaluate_batch(batches)
        logits = found.pop("logits").numpy()
        if num_examples * logits.shape[1] <= MAX_LOGITS:
            gathered = gathered or _Logits(parallel, num_batches, *logits.shape)
            gathered.add(logits)
        for key, value in found.items():
            sums[key] = sums.get(key, 0.0) + value.numpy()
        # Workers look at the stop flag after the same batch, since the interval comes from a total.
        if done == next_check:
            took = parallel.total({"s": time.monotonic() - checked, "stop": float(stop_requested())})
            if took["stop"] > 0:
                return None
            per_batch_s = float(took["s"]) / parallel.world_size / interval
            interval = max(1, int(MAX_CHUNK_S / max(per_batch_s, 1e-3)))
            next_check, checked = done + interval, time.monotonic()
    totals = parallel.total(sums)
    seen, expected = float(totals["seen"]), float(example_hash(np.arange(num_examples)).sum())
    if round(float(totals["examples"])) != num_examples or seen != expected:
        raise Refusal(
            f"evaluation of '{split}' saw {round(float(totals['examples']))} of {num_examples} examples, "
            "or not each once.",
            fix="report this as a bug: the figures cannot be trusted.",
            code=ExitCode.INTERNAL,
        )
    confusion = np.rint(totals["confusion"]).astype(np.int64)
    return Evaluation(
        split=split,
        num_examples=num_examples,
        num_correct=int(np.trace(confusion)),
        mean_loss=float(totals["loss"]) / num_examples,
        confusion=confusion,
        logits=None if gathered is None else gathered.of_all(num_examples),
    )


class _Logits:
    """The logits of a split, a few batches at a time brought to rank 0, which alone keeps them.

    Each row comes from one worker, as it is: any number of workers gathers the same bits.
    """

    def __init__(self, parallel: DataParallel, num_batches: int, batch: int, classes: int) -> None:
        self._parallel = parallel
        self._shares = [rows_of(k, parallel.world_size, batch) for k in range(parallel.world_size)]
        self._at_once = max(1, PIECE_BYTES // (4 * batch * classes))  # batches; the same on every worker
        self._own: list[np.ndarray] = []
        self._done = 0
        self._all = np.empty((num_batches if parallel.rank == 0 else 0, batch, classes), np.float32)

    def add(self, logits: np.ndarray) -> None:
        """Those of the next batch, [batch, classes], of which this worker's rows count."""
        share = self._shares[self._parallel.rank]
        self._own.append(logits[share.start : share.stop].copy())
        if len(self._own) == self._at_once:
            self._exchange()

    def of_all(self, num_examples: int) -> np.ndarray | None:
        """float32 [examples, classes] on rank 0, without the padding of the last batch."""
        if self._own:
            self._exchange()
        return None if self._parallel.rank else self._all.reshape(-1, self._all.shape[-1])[:num_examples]

    def _exchange(self) -> None:
        everyone = self._parallel.gather(np.stack(self._own).tobytes())
        batches = slice(self._done, self._done + len(self._own))
        if self._parallel.rank == 0:
            for share, rows in zip(self._shares, everyone, strict=True):
                place = self._all[batches, share.start : share.stop]
                place[:] = np.frombuffer(rows, np.float32).reshape(place.shape)
        self._done, self._own = batches.stop, []
