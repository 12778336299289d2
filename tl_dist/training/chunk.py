"""Many steps in one graph call: the loop in the graph, fetching batches, clocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from tl_dist.data.batch import Batch
from tl_dist.training.step import Gradients, TrainStep, compiled, no_clock

SUMS = ("loss", "correct", "examples", "skipped", "norm", "loss_scale", "reduction_s", "data_wait_s")
LATEST = ("norm", "loss_scale")  # of the last step, not summed
TIMES = ("reduction_s", "data_wait_s")


def train_chunk(step: TrainStep) -> Callable[[Any, Any, Any], dict[str, Any]]:
    """`run_steps(batches, first, n)`: n training steps in one graph call, without returning to Python.

    Returns this process's sums over the chunk as scalars: `loss` (of examples), `correct`, `examples`, `skipped`,
    `norm` (of the last step), `data_wait_s` and `reduction_s` (what is not hidden behind computation; both times are
    0 where the step has no clock).

    On a GPU only the last step is timed, and stands for all: a clock is the host's, and asked for the time after a
    result it would wait for that, while the GPU's queue runs dry. There the host waits for the results in any case.
    """
    parallel = step.parallel
    one_replica_each = parallel.num_replicas == parallel.world_size > 1
    chunk = _Ahead(step) if one_replica_each and step.has_frozen else _Chunk(step)
    return compiled(chunk.run_steps)


class _Chunk:
    """Batch after batch."""

    def __init__(self, step: TrainStep) -> None:
        self._step = step
        self._samples_times = step.gpu and step.clock is not no_clock

    def run_steps(self, batches: Any, first: Any, n: Any) -> dict[str, Any]:
        n, nothing = tf.cast(n, tf.int32), dict.fromkeys(SUMS, 0.0)
        in_loop = n - 1 if self._samples_times else n
        sums = _repeated(in_loop, first, partial(self._one, batches, timed=not self._step.gpu), nothing)
        if not self._samples_times:
            return sums
        last = self._one(batches, first + tf.cast(in_loop, first.dtype), sums, timed=True)
        return _as_of_all(last, n)

    def _one(self, batches: Any, at: Any, sums: dict[str, Any], *, timed: bool) -> dict[str, Any]:
        batch, waited = self._fetch(batches, list(sums.values()) if timed else [], timed=timed)
        one = self._step.parallel.run(partial(self._step, timed=timed), batch, at)
        return _summed(sums, {**one, "data_wait_s": waited})

    def _fetch(self, batches: Any, after: Sequence[Any], *, timed: bool) -> tuple[Batch, Any]:
        """The next batch, and the seconds until it was there once `after` was."""
        if not timed:
            return batches.get_next(), tf.constant(0.0)
        # Nothing but these dependencies orders a clock: iterations of a loop may overlap.
        with tf.control_dependencies(after):
            before = self._step.clock()
        with tf.control_dependencies([before]):
            batch = batches.get_next()
        with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
            there = self._step.clock()
        # On few threads the clock would otherwise be read when the computation leaves one free.
        with tf.control_dependencies([there]):
            batch = tf.nest.map_structure(tf.identity, batch, expand_composites=True)
        return batch, tf.cast(there - before, tf.float32)


class _Ahead(_Chunk):
    """The same, with the frozen part one batch ahead: it fills the time in which the gradients travel."""

    def run_steps(self, batches: Any, first: Any, n: Any) -> dict[str, Any]:
        step, n, timed = self._step, tf.cast(n, tf.int32), not self._step.gpu
        in_loop = n - 1 if self._samples_times else n

        def fetch_ahead(*, timed: bool) -> tuple[Batch, Any]:
            batch, waited = self._fetch(batches, [], timed=timed)
            return step.through_frozen(batch), waited

        def body(at: Any, state: Any) -> Any:
            sums, batch, waited, left = state
            own: Gradients = step.gradients(batch)
            # Not earlier: then it would only compete with the backward pass.
            with tf.control_dependencies(own.gradients):
                more = tf.identity(left > 1)
            upcoming, wait = tf.cond(
                more, partial(fetch_ahead, timed=timed), lambda: (batch, tf.constant(0.0))
            )
            meanwhile = [upcoming.images, upcoming.teacher]
            one = step.update(batch, at, own, meanwhile=meanwhile, timed=timed)
            return _summed(sums, {**one, "data_wait_s": waited}), upcoming, wait, left - 1

        # The first fetch of a chunk: the queue of a GPU is empty then.
        fetched, waited = fetch_ahead(timed=timed or self._samples_times)
        start = (dict.fromkeys(SUMS, 0.0), fetched, waited, n)
        sums, batch, waited, _ = _repeated(in_loop, first, body, start)
        if not self._samples_times:
            return sums
        one = step.update(batch, first + tf.cast(in_loop, first.dtype), step.gradients(batch))
        return _as_of_all(_summed(sums, {**one, "data_wait_s": waited}), n)


def _as_of_all(sums: dict[str, Any], n: Any) -> dict[str, Any]:
    """With the times of one step for those of n."""
    return {key: value * tf.cast(n, value.dtype) if key in TIMES else value for key, value in sums.items()}


def _summed(sums: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    return {key: one[key] if key in LATEST else sums[key] + one[key] for key in SUMS}


def _repeated(n: Any, first: Any, body: Callable[[Any, Any], Any], state: Any) -> Any:
    """The state after `state = body(step, state)` for each of the n steps from `first` on, as a loop in the graph."""
    state = tf.nest.map_structure(tf.convert_to_tensor, state)
    # Turns are counted in int32, which TensorFlow keeps in the host's memory: the host would wait for a GPU's own count
    # before each turn. Steps are counted beside it, on the device where the rate is computed from them.
    _, _, state = tf.while_loop(
        lambda k, at, state: k < n,
        lambda k, at, state: (k + 1, at + 1, body(at, state)),
        (tf.zeros([], tf.int32), first, state),
    )
    return state
