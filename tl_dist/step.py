"""The compiled chunk of training steps, and the compiled evaluation step.

Order of a step, on every strategy: forward and backward on this replica's rows, sum over all replicas, then
everything that looks at the gradient (finite check, unscale, clip, decay, update).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import tensorflow as tf

from tl_dist.model import Classifier
from tl_dist.optim import Optimizer
from tl_dist.parallel import DataParallel, rows_of
from tl_dist.state import Batch


@dataclass(frozen=True)
class Objective:
    """Softmax cross-entropy, weighted and smoothed; its sum over the global batch is divided by `global_batch`."""

    num_classes: int
    global_batch: int
    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None
    mixed: bool = False
    """whether labels are mixtures of two (mixup, cutmix, soft labels)"""

    def losses(self, logits: Any, batch: Batch) -> Any:
        """float32 [rows]: the loss of each example times its weight; of a mixture, the mixture of the losses."""
        own = self._losses(logits, batch.labels)
        if self.mixed:
            own = batch.shares * own + (1 - batch.shares) * self._losses(logits, batch.others)
        return own * batch.weights

    def _losses(self, logits: Any, labels: Any) -> Any:
        if self.label_smoothing:
            on, off = 1.0 - self.label_smoothing, self.label_smoothing / self.num_classes
            targets = tf.one_hot(labels, self.num_classes) * on + off
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
        else:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        if self.class_weights is not None:
            losses *= tf.gather(tf.constant(self.class_weights, tf.float32), labels)
        return losses


compiled = partial(tf.function, autograph=False)
"""AutoGraph rewrites every function that is called, ours and Keras's: 2 of 4 s of tracing, for one loop."""


def _repeated(n: Any, body: Callable[[Any, Any], Any], state: Any) -> Any:
    """The state after `state = body(k, state)` for each k below n, as a loop in the graph."""
    state = tf.nest.map_structure(tf.convert_to_tensor, state)
    first = tf.zeros([], n.dtype)
    _, state = tf.while_loop(lambda k, _: k < n, lambda k, state: (k + 1, body(k, state)), (first, state))
    return state


def train_chunk(
    model: Classifier,
    optimizer: Optimizer,
    objective: Objective,
    parallel: DataParallel,
    rate: Callable[[Any], Any],
    *,
    stage: int = 0,
    accumulate: int = 1,
    xla: bool = False,
    timed: bool = True,
) -> Callable[[Any, Any, Any], dict[str, Any]]:
    """`run_steps(batches, step, n)`: n training steps in one graph call, without returning to Python.

    Returns this process's sums over the chunk as scalars: `loss` (of examples), `correct`, `examples`, `skipped`,
    `norm` (of the last step), `data_wait_s` and `reduction_s` (what is not hidden behind computation; both times are
    0 unless `timed`).
    """
    trainable = list(model.trainable.values())
    exact = [accumulate == 1 and path in model.bfloat16_paths for path in model.trainable]
    # TensorFlow refuses to read a clock inside a graph in its deterministic mode.
    clock = tf.timestamp if timed else _no_clock

    def forward_backward(batch: Batch, scale: Any) -> tuple[Any, Any, list[Any], list[Any]]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(trainable)
            with model.batch_statistics(parallel.total_in_step) as moments:
                logits = model.suffix(batch.images, batch.masks)
            loss_sum = tf.reduce_sum(objective.losses(logits, batch))
            scaled = loss_sum * (scale / objective.global_batch)
        grads = tape.gradient(scaled, trainable)
        # Where a layer computes in bfloat16 its gradient is bfloat16 that was widened: narrowing it loses nothing.
        grads = [tf.cast(g, tf.bfloat16) if narrow else g for g, narrow in zip(grads, exact, strict=True)]
        return loss_sum, _num_correct(logits, batch), grads, model.moments_in_order(moments)

    if xla:
        forward_backward = compiled(forward_backward, jit_compile=True)

    def accumulated(batch: Batch, scale: Any) -> tuple[Any, Any, list[Any], list[Any]]:
        """The same sums from `accumulate` micro-batches, one after another, so that one at a time is in memory."""
        num_rows = int(batch.images.shape[0])
        loss_sum, correct, grads, moments = forward_backward(
            _rows(batch, rows_of(0, accumulate, num_rows)), scale
        )
        for k in range(1, min(accumulate, num_rows)):
            with tf.control_dependencies(grads):
                part = tf.nest.map_structure(tf.identity, _rows(batch, rows_of(k, accumulate, num_rows)))
            more_loss, more_correct, more_grads, more_moments = forward_backward(part, scale)
            loss_sum, correct = loss_sum + more_loss, correct + more_correct
            grads = [a + b for a, b in zip(grads, more_grads, strict=True)]
            moments = [a + b for a, b in zip(moments, more_moments, strict=True)]
        return loss_sum, correct, grads, moments

    compute = accumulated if accumulate > 1 else forward_backward

    def update(
        batch: Batch,
        step: Any,
        loss_sum: Any,
        correct: Any,
        grads: list[Any],
        moments: list[Any],
        meanwhile: Sequence[Any] = (),
    ) -> dict[str, Any]:
        """Reduce and apply; what is computed `meanwhile` hides the reduction."""
        with tf.control_dependencies([*grads, *meanwhile]):
            computed = clock()
        reduced_values = parallel.reduce_gradients([*grads, *moments])
        grads, moments = reduced_values[: len(grads)], reduced_values[len(grads) :]
        with tf.control_dependencies(grads):
            reduced = clock()
        skipped, norm = optimizer.apply(grads, rate(step), stage)
        model.move_statistics([moment / objective.global_batch for moment in moments], skipped)
        # `run` and `total` sum over replicas: what is equal on all of them is taken from the first.
        first = tf.cast(tf.equal(parallel.replica(), 0), tf.float32)
        return {
            "loss": loss_sum,
            "correct": correct,
            "examples": tf.reduce_sum(_counted(batch)),
            "skipped": skipped * first,
            "norm": tf.where(first > 0, norm, 0.0),
            "loss_scale": optimizer.scale() * first,
            "reduction_s": tf.cast(tf.maximum(reduced - computed, 0.0), tf.float32) / parallel.num_replicas,
        }

    def through_prefix(batch: Batch) -> Batch:
        return batch._replace(images=model.prefix(batch.images))

    def replica_step(batch: Batch, step: Any) -> dict[str, Any]:
        batch = through_prefix(batch)
        return update(batch, step, *compute(batch, optimizer.scale()))

    def fetch(batches: Any, after: Sequence[Any]) -> tuple[Batch, Any]:
        """The next batch, and the seconds until it was there once `after` was."""
        # Nothing but these dependencies orders a clock: iterations of a loop may overlap.
        with tf.control_dependencies(after):
            before = clock()
        with tf.control_dependencies([before]):
            batch = batches.get_next()
        with tf.control_dependencies(tf.nest.flatten(batch)):
            there = clock()
        # On few threads the clock would otherwise be read when the computation leaves one free.
        with tf.control_dependencies([there]):
            batch = tf.nest.map_structure(tf.identity, batch)
        return batch, tf.cast(there - before, tf.float32)

    def summed(sums: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
        return {key: one[key] if key in LATEST else sums[key] + one[key] for key in SUMS}

    nothing = dict.fromkeys(SUMS, 0.0)

    def run_steps(batches: Any, step: Any, n: Any) -> dict[str, Any]:
        def one_step(k: Any, sums: dict[str, Any]) -> Any:
            batch, waited = fetch(batches, list(sums.values()))
            one = parallel.run(replica_step, batch, step + k)
            return summed(sums, {**one, "data_wait_s": waited})

        return _repeated(n, one_step, nothing)

    def run_steps_ahead(batches: Any, step: Any, n: Any) -> dict[str, Any]:
        """The same, with the frozen part one batch ahead: it fills the time in which the gradients travel."""

        def fetch_ahead() -> tuple[Batch, Any]:
            batch, waited = fetch(batches, [])
            return through_prefix(batch), waited

        def one_step(k: Any, state: Any) -> Any:
            sums, batch, waited = state
            work = compute(batch, optimizer.scale())
            # Not earlier: then it would only compete with the backward pass.
            with tf.control_dependencies(work[2]):
                more = tf.identity(k + 1 < n)
            upcoming, wait = tf.cond(more, fetch_ahead, lambda: (batch, tf.constant(0.0)))
            one = update(batch, step + k, *work, meanwhile=[upcoming.images])
            return summed(sums, {**one, "data_wait_s": waited}), upcoming, wait

        sums, _, _ = _repeated(n, one_step, (nothing, *fetch_ahead()))
        return sums

    one_replica_each = parallel.num_replicas == parallel.world_size > 1
    return compiled(run_steps_ahead if one_replica_each and model.has_prefix else run_steps)


def weight_checksums(model: Classifier, parallel: DataParallel) -> Callable[[], Any]:
    """`checksums()`: this process's part of a float64 matrix [replica, moving variable], 0 where it has no row.

    Each entry is the sum of a variable's bits as integers, modulo 2**40, so that the total over processes is exact.
    """
    variables = list(model.moving.values())

    def replica_sums(batch: Any, step: Any) -> Any:
        del batch, step
        bits = [tf.reduce_sum(tf.cast(tf.bitcast(v, tf.int32), tf.int64)) % 2**40 for v in variables]
        row = tf.one_hot(parallel.replica(), parallel.num_replicas, dtype=tf.float64)
        return row[:, None] * tf.cast(tf.stack(bits), tf.float64)[None, :]

    @compiled
    def checksums() -> Any:
        # Mirrored shares a batch out by rows: one row for each replica.
        return parallel.run(replica_sums, (tf.zeros([parallel.num_replicas]),), tf.constant(0, tf.int64))

    return checksums


SUMS = ("loss", "correct", "examples", "skipped", "norm", "loss_scale", "reduction_s", "data_wait_s")
LATEST = ("norm", "loss_scale")  # of the last step, not summed


def evaluation_step(
    model: Classifier, objective: Objective, parallel: DataParallel, *, global_batch: int, views: int = 1
) -> Callable[[Any], dict[str, Any]]:
    """`evaluate_batch(batches)`: this process's sums over its rows of the next batch.

    `loss`, `examples` and `confusion` [true class, predicted class] leave padding out; `seen` sums a hash of the
    index of each example, so that the total proves that each was seen once. `logits` [global_batch, classes] holds
    those of this process's rows in their place in the global batch, and 0 elsewhere.

    With several `views` images are [rows, views, ...], and `logits` the logarithms of the mean probabilities.
    """

    def judged(batch: Batch) -> Any:
        if views == 1:
            return model(batch.images)
        # One view at a time is in memory.
        each = tf.map_fn(
            lambda view: tf.nn.log_softmax(model(tf.gather(batch.images, view, axis=1))),
            tf.range(views),
            fn_output_signature=tf.TensorSpec([batch.images.shape[0], objective.num_classes], tf.float32),
            parallel_iterations=1,
        )
        return tf.reduce_logsumexp(each, axis=0) - math.log(views)

    def replica_step(batch: Batch, step: Any) -> dict[str, Any]:
        del step
        logits = judged(batch)
        counted = _counted(batch)
        return {
            "loss": tf.cast(tf.reduce_sum(objective.losses(logits, batch)), tf.float64),
            "examples": tf.cast(tf.reduce_sum(counted), tf.float64),
            "confusion": tf.math.confusion_matrix(
                batch.labels,
                tf.argmax(logits, axis=-1),
                objective.num_classes,
                weights=tf.cast(counted, tf.float64),
                dtype=tf.float64,
            ),
            "seen": tf.reduce_sum(
                tf.cast(example_hash(batch.positions), tf.float64) * tf.cast(counted, tf.float64)
            ),
            "logits": tf.scatter_nd(
                (batch.positions % global_batch)[:, None],
                tf.where(counted[:, None] > 0, logits, 0.0),
                [global_batch, objective.num_classes],
            ),
        }

    @compiled
    def evaluate_batch(batches: Any) -> dict[str, Any]:
        return parallel.run(replica_step, batches.get_next(), tf.constant(0, tf.int64))

    return evaluate_batch


def example_hash(index: Any) -> Any:
    """An integer below 2**31 for each index (Knuth's multiplicative hash); works on tensors and NumPy arrays."""
    return (index * 2654435761) % 2147483647


def _num_correct(logits: Any, batch: Batch) -> Any:
    hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), batch.labels)
    return tf.reduce_sum(tf.cast(hits, tf.float32) * _counted(batch))


def _counted(batch: Batch) -> Any:
    """float32 [rows]: 1 for an example, 0 for padding."""
    return tf.cast(batch.weights > 0, tf.float32)


def _no_clock() -> Any:
    return tf.constant(0.0, tf.float64)


def _rows(batch: Batch, rows: range) -> Batch:
    return Batch(*(tensor[rows.start : rows.stop] for tensor in batch))
