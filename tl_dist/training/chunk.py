"""Run many steps in one graph call: the loop over steps in the graph, how batches are fetched, and clocks."""

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
    """Return `run_steps(batches, first, n)`, which runs n training steps in one graph call, with no Python in between.

    It returns this process's sums over the chunk as scalars: `loss` (of examples), `correct`, `examples`, `skipped`,
    `norm` (of the last step), `data_wait_s` and `reduction_s` (what is not hidden behind computation; both times are
    0 where the step has no clock).

    On a GPU only the last step is timed, and stands for all: reading the host's clock after a result waits for that
    result, while the GPU's queue runs dry. At the end of a chunk the host waits for its results in any case.
    """
    parallel = step.parallel
    one_replica_each = parallel.num_replicas == parallel.world_size > 1
    has_frozen = step.model.has_prefix or step.teacher is not None
    chunk = PrefetchedPrefix(step) if one_replica_each and has_frozen else SequentialSteps(step)
    return compiled(chunk.run_steps)


class SequentialSteps:
    """Take one batch after another through the whole step."""

    def __init__(self, step: TrainStep) -> None:
        self._step = step
        self._samples_times = step.gpu and step.clock is not no_clock

    def run_steps(self, batches: Any, first: Any, n: Any) -> dict[str, Any]:
        """Run n steps from step `first` on; return the sums of `train_chunk`."""
        n, nothing = tf.cast(n, tf.int32), dict.fromkeys(SUMS, 0.0)
        in_loop = n - 1 if self._samples_times else n
        sums = _graph_loop(in_loop, first, partial(self._step_once, batches, timed=not self._step.gpu), nothing)
        if not self._samples_times:
            return sums
        last = self._step_once(batches, first + tf.cast(in_loop, first.dtype), sums, timed=True)
        return _scale_times(last, n)

    def _step_once(self, batches: Any, at: Any, sums: dict[str, Any], *, timed: bool) -> dict[str, Any]:
        batch, waited = self._fetch(batches, list(sums.values()) if timed else [], timed=timed)
        metrics = self._step.parallel.run(partial(self._step, timed=timed), batch, at)
        return _accumulate(sums, {**metrics, "data_wait_s": waited})

    def _fetch(self, batches: Any, after: Sequence[Any], *, timed: bool) -> tuple[Batch, Any]:
        """Return the next batch, and the seconds that it took to arrive after `after` was computed."""
        if not timed:
            return batches.get_next(), tf.constant(0.0)
        # Nothing but these dependencies orders a clock: iterations of a loop may overlap.
        with tf.control_dependencies(after):
            before = self._step.clock()
        with tf.control_dependencies([before]):
            batch = batches.get_next()
        with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
            arrived = self._step.clock()
        # On few threads the clock would otherwise be read when the computation leaves one free.
        with tf.control_dependencies([arrived]):
            batch = tf.nest.map_structure(tf.identity, batch, expand_composites=True)
        return batch, tf.cast(arrived - before, tf.float32)


class PrefetchedPrefix(SequentialSteps):
    """Compute the frozen part one batch ahead, in the time in which the gradients travel."""

    def run_steps(self, batches: Any, first: Any, n: Any) -> dict[str, Any]:
        """Run n steps from step `first` on; return the sums of `train_chunk`."""
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
            upcoming, wait = tf.cond(more, partial(fetch_ahead, timed=timed), lambda: (batch, tf.constant(0.0)))
            meanwhile = [upcoming.images, upcoming.teacher]
            metrics = step.update(batch, at, own, meanwhile=meanwhile, timed=timed)
            return _accumulate(sums, {**metrics, "data_wait_s": waited}), upcoming, wait, left - 1

        # The first fetch of a chunk: the queue of a GPU is empty then.
        fetched, waited = fetch_ahead(timed=timed or self._samples_times)
        start = (dict.fromkeys(SUMS, 0.0), fetched, waited, n)
        sums, batch, waited, _ = _graph_loop(in_loop, first, body, start)
        if not self._samples_times:
            return sums
        metrics = step.update(batch, first + tf.cast(in_loop, first.dtype), step.gradients(batch))
        return _scale_times(_accumulate(sums, {**metrics, "data_wait_s": waited}), n)


def _scale_times(sums: dict[str, Any], n: Any) -> dict[str, Any]:
    """Return the sums with the times of the one step that was timed taken for all n steps."""
    return {key: value * tf.cast(n, value.dtype) if key in TIMES else value for key, value in sums.items()}


def _accumulate(sums: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the sums with the metrics of one more step."""
    return {key: metrics[key] if key in LATEST else sums[key] + metrics[key] for key in SUMS}


def _graph_loop(n: Any, first: Any, body: Callable[[Any, Any], Any], state: Any) -> Any:
    """Return the state after n times `state = body(step, state)`, from step `first` on, by a loop in the graph."""
    state = tf.nest.map_structure(tf.convert_to_tensor, state)
    # The loop counter is int32 because TensorFlow keeps int32 in host memory; an int64 counter would force a device
    # sync per iteration. The step is counted beside it, on the device, where the rate is computed from it.
    _, _, state = tf.while_loop(
        lambda k, at, state: k < n,
        lambda k, at, state: (k + 1, at + 1, body(at, state)),
        (tf.zeros([], tf.int32), first, state),
    )
    return state
