"""Compute one training step: forward and backward on a replica's rows, the sum over all replicas, the update.

What depends on the gradient (finite check, unscale, clip, decay, update) comes after the reduction, on every strategy,
so that all replicas see the same gradient and decide the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import tensorflow as tf

from tl_dist.data.batch import Batch
from tl_dist.models import drop_path
from tl_dist.models.classifier import Classifier
from tl_dist.parallel import DataParallel, rows_of
from tl_dist.training.losses import Objective, counted
from tl_dist.training.optim import Optimizer
from tl_dist.training.target_losses import TargetObjective

compiled = partial(tf.function, autograph=False)
"""without AutoGraph, which rewrites every function that is called: 2 of 4 s of tracing, of no use here"""


def no_clock() -> Any:
    """Return 0 s: in its deterministic mode TensorFlow refuses to read a clock inside a graph."""
    return tf.constant(0.0, tf.float64)


class Gradients(NamedTuple):
    """The results of the forward and backward pass of some rows: sums over these rows."""

    loss: Any  # of the examples' losses, not divided by anything
    correct: Any
    gradients: list[Any]  # of the scaled loss, divided by the global batch
    moments: list[Any]  # rows * moment for each batch-norm statistic that moves


@dataclass(frozen=True)
class TrainStep:
    """The training step of a replica; called inside the strategy's `run`, in a graph.

    `rate(step)` is the learning rate; `stage` is the index of the optimizer's stage that is trained. A replica takes
    its rows in `accumulate` micro-batches, one after another. `clock()` gives seconds, or 0 where it must not be read.

    With `gpu` nothing in a step makes the host wait for a result, except the clock where a step is timed.
    """

    model: Classifier
    optimizer: Optimizer
    objective: Objective | TargetObjective
    parallel: DataParallel
    rate: Callable[[Any], Any]
    stage: int = 0
    accumulate: int = 1
    wire: str = "auto"  # number format of gradients between processes
    xla: bool = False
    """compile all that needs no sum over replicas; if the forward pass needs one, that is the update alone"""
    gpu: bool = False
    teacher: Callable[[Any], Any] | None = None
    """images -> logits, if it is computed in each step; None: the batch has its logits, if there is a teacher"""
    clock: Callable[[], Any] = tf.timestamp

    def __call__(self, batch: Batch, step: Any, *, timed: bool = True) -> dict[str, Any]:
        """Run one step; return scalars of this replica that `run` and `total` may sum: see `chunk.SUMS`."""
        batch = self.through_frozen(batch)
        return self.update(batch, step, self.gradients(batch), timed=timed)

    def through_frozen(self, batch: Batch) -> Batch:
        """Return the batch with outputs of the frozen part instead of images, and the teacher's logits of these."""
        if self.teacher is not None:
            batch = batch._replace(teacher=self.teacher(batch.images))
        return batch._replace(images=self._prefix(batch.images))

    def gradients(self, batch: Batch) -> Gradients:
        """Run forward and backward on this replica's rows, in micro-batches so that one at a time is in memory."""
        scale, micro_batch = self.optimizer.scale(), self._micro_batch
        if self.accumulate == 1:
            return micro_batch(batch, scale)
        num_rows = int(batch.images.shape[0])

        def part_of(k: int) -> Batch:
            rows = rows_of(k, self.accumulate, num_rows)
            return Batch(*(tensor[rows.start : rows.stop] for tensor in batch))

        sums = micro_batch(part_of(0), scale)
        for k in range(1, min(self.accumulate, num_rows)):
            with tf.control_dependencies(sums.gradients):
                part = tf.nest.map_structure(tf.identity, part_of(k))
            sums = tf.nest.map_structure(lambda a, b: a + b, sums, micro_batch(part, scale))
        return sums

    # Cached, so that XLA compiles each function once, however often a step is traced.

    @cached_property
    def _prefix(self) -> Callable[[Any], Any]:
        return self._by_xla(self.model.prefix, unless=not self.model.has_prefix)

    @cached_property
    def _micro_batch(self) -> Callable[[Batch, Any], Gradients]:
        return self._by_xla(self._forward_backward, unless=self.model.sums_over_replicas)

    @cached_property
    def _apply(self) -> Callable[[Sequence[Any], Sequence[Any], Any], tuple[Any, Any]]:
        return self._by_xla(self._apply_reduced)

    def _by_xla(self, function: Callable[..., Any], *, unless: bool = False) -> Callable[..., Any]:
        return compiled(function, jit_compile=True) if self.xla and not unless else function

    def _forward_backward(self, batch: Batch, scale: Any) -> Gradients:
        model, trainable = self.model, list(self.model.trainable.values())
        # XLA fuses by itself. On CPUs a fused batch norm would change the last bits of every run, and on GPUs
        # TensorFlow refuses its backward pass in deterministic mode, in which there is no clock either.
        fused = self.gpu and self.clock is not no_clock and (model.sums_over_replicas or not self.xla)
        statistics = model.batch_statistics(self.parallel.total_in_step, fused=fused)
        with statistics as moments, drop_path.dropping(model.drops, batch.masks):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(trainable)
                logits = model.suffix(batch.images, batch.masks)
                loss = tf.reduce_sum(self.objective.losses(logits, batch))
                scaled = loss * (scale / self.objective.global_batch)
            # Inside: blocks may be computed again. A gradient that names rows, as of relative positions, is made dense.
            gradients = [tf.convert_to_tensor(g) for g in tape.gradient(scaled, trainable)]
        if self.accumulate == 1:
            # The gradient of a layer that computes in bfloat16 was widened from bfloat16: narrowing it loses nothing.
            gradients = [
                tf.cast(g, tf.bfloat16) if path in model.bfloat16_paths else g
                for path, g in zip(model.trainable, gradients, strict=True)
            ]
        correct = tf.reduce_sum(self.objective.hits(logits, batch.labels) * counted(batch))
        return Gradients(loss, correct, gradients, model.moments_in_order(moments))

    def update(
        self, batch: Batch, step: Any, own: Gradients, meanwhile: Sequence[Any] = (), *, timed: bool = True
    ) -> dict[str, Any]:
        """Reduce and apply the gradients; the computation of `meanwhile` hides the reduction."""
        clock = self.clock if timed else no_clock
        with tf.control_dependencies([*own.gradients, *meanwhile]):
            computed = clock()
        wire = None if self.wire == "auto" or self.parallel.num_replicas == 1 else self.wire
        sent = [tf.cast(g, wire) for g in own.gradients] if wire else own.gradients
        values = self.parallel.reduce_gradients([*sent, *own.moments])
        gradients, moments = values[: len(own.gradients)], values[len(own.gradients) :]
        with tf.control_dependencies(gradients):
            reduced = clock()
        skipped, norm = self._apply(gradients, moments, step)
        # `run` and `total` sum over replicas: a value that is equal on all is taken from the first.
        first = tf.cast(tf.equal(self.parallel.replica(), 0), tf.float32)
        return {
            "loss": own.loss,
            "correct": own.correct,
            "examples": tf.reduce_sum(counted(batch)),
            "skipped": skipped * first,
            "norm": tf.where(first > 0, norm, 0.0),
            "loss_scale": self.optimizer.scale() * first,
            "reduction_s": tf.cast(tf.maximum(reduced - computed, 0.0), tf.float32) / self.parallel.num_replicas,
        }

    def _apply_reduced(self, gradients: Sequence[Any], moments: Sequence[Any], step: Any) -> tuple[Any, Any]:
        skipped, norm = self.optimizer.apply(gradients, self.rate(step), self.stage, select=self.gpu or self.xla)
        self.model.move_statistics([moment / self.objective.global_batch for moment in moments], skipped)
        return skipped, norm


def weight_checksums(model: Classifier, parallel: DataParallel) -> Callable[[], Any]:
    """Return `checksums()`, which returns float64 [replica of this process, moving variable].

    Each entry is the sum of a variable's bits as integers, modulo 2**40, so that totals over processes are exact.
    """
    variables = list(model.moving.values())
    local = parallel.num_replicas // parallel.world_size

    def replica_sums(batch: Any, step: Any) -> Any:
        bits = [tf.reduce_sum(tf.cast(tf.bitcast(v, tf.int32), tf.int64)) % 2**40 for v in variables]
        row = tf.one_hot(parallel.replica() - parallel.rank * local, local, dtype=tf.float64)
        return row[:, None] * tf.cast(tf.stack(bits), tf.float64)[None, :]

    @compiled
    def checksums() -> Any:
        # Mirrored divides a batch by rows: one row for each replica.
        return parallel.run(replica_sums, (tf.zeros([local]),), tf.constant(0, tf.int64))

    return checksums
