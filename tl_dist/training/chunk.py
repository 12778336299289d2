"""Many steps in one graph call: the loop in the graph, fetching batches, clocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tl_dist.data.batch import Batch
from tl_dist.training.step import Gradients, TrainStep, compiled

SUMS = ("loss", "correct", "examples", "skipped", "norm", "loss_scale", "reduction_s", "data_wait_s")
LATEST = ("norm", "loss_scale")  # of the last step, not summed


def train_chunk(step: TrainStep) -> Callable[[Any, Any, Any], dict[str, Any]]:
    """`run_steps(batches, first, n)`: n training steps in one graph call, without returning to Python.

    Returns this process's sums over the chunk as scalars: `loss` (of examples), `correct`, `examples`, `skipped`,
    `norm` (of the last step), `data_wait_s` and `reduction_s` (what is not hidden behind computation; both times are
    0 where the step has no clock).
    """
    parallel = step.parallel
    one_replica_each = parallel.num_replicas == parallel.world_size > 1
    chunk = _Ahead(step) if one_replica_each and step.model.has_prefix else _Chunk(step)
    return compiled(chunk.run_steps)


def no_clock() -> Any:
    """TensorFlow refuses to read a clock inside a graph in its deterministic mode."""
    return tf.constant(0.0, tf.float64)


class _Chunk:
    """Batch after batch."""

    def __init__(self, step: TrainStep) -> None:
        self._step = step

    def run_steps(self, batches: Any, first: Any, n: Any) -> dict[str, Any]:
        def body(k: Any, sums: dict[str, Any]) -> Any:
            batch, waited = self._fetch(batches, list(sums.values()))
            one = self._step.parallel.run(self._step, batch, first + k)
            return _summed(sums, {**one, "data_wait_s": waited})

        return _repeated(n, body, dict.fromkeys(SUMS, 0.0))

    def _fetch(self, batches: Any, after: Sequence[Any]) -> tuple[Batch, Any]:
        """The next batch, and the seconds until it was there once `after` was."""
        # Nothing but these dependencies orders a clock: iterations of a loop may overlap.
        with tf.control_dependencies(after):
            before = self._step.clock()
        with tf.control_dependencies([before]):
            batch = batches.get_next()
        with tf.control_dependencies(tf.nest.flatten(batch)):
            there = self._step.clock()
        # On few threads the clock would otherwise be read when the computation leaves one free.
        with tf.control_dependencies([there]):
            batch = tf.nest.map_structure(tf.identity, batch)
        return batch, tf.cast(there - before, tf.float32)


class _Ahead(_Chunk):
    """The same, with the frozen part one batch ahead: it fills the time in which the gradients travel."""

    def run_steps(self, batches: Any, first: Any, n: Any) -> dict[str, Any]:
        step = self._step

        def fetch_ahead() -> tuple[Batch, Any]:
            batch, waited = self._fetch(batches, [])
            return step.through_prefix(batch), waited

        def body(k: Any, state: Any) -> Any:
            sums, batch, waited = state
            own: Gradients = step.gradients(batch)
            # Not earlier: then it would only compete with the backward pass.
            with tf.control_dependencies(own.gradients):
                more = tf.identity(k + 1 < n)
            upcoming, wait = tf.cond(more, fetch_ahead, lambda: (batch, tf.constant(0.0)))
            one = step.update(batch, first + k, own, meanwhile=[upcoming.images])
            return _summed(sums, {**one, "data_wait_s": waited}), upcoming, wait

        sums, _, _ = _repeated(n, body, (dict.fromkeys(SUMS, 0.0), *fetch_ahead()))
        return sums


def _summed(sums: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    return {key: one[key] if key in LATEST else sums[key] + one[key] for key in SUMS}


def _repeated(n: Any, body: Callable[[Any, Any], Any], state: Any) -> Any:
    """The state after `state = body(k, state)` for each k below n, as a loop in the graph."""
    state = tf.nest.map_structure(tf.convert_to_tensor, state)
    first = tf.zeros([], n.dtype)
    _, state = tf.while_loop(lambda k, _: k < n, lambda k, state: (k + 1, body(k, state)), (first, state))
    return state
