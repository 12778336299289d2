"""Recompute the statistics of batch norm over training batches, until enough steps have moved the moving averages.

A moving average needs about 3 / (1 - momentum) steps to forget where it began: 3,000 in MobileNet. Until then
evaluation uses the mean and variance over some batches, computed with the current weights: E[m] and
E[s^2 + m^2] - E[m]^2 over the means m and variances s^2 of rows that were normalized together, weighted by their number
(PreciseBN: Wu and Johnson, arXiv 2105.07576, appendix, and fvcore's update_bn_stats). The variance between batches is
included, so a layer above no other batch norm gets the variance of all its inputs, however they were divided. The
batches are the next ones of training, a function of seed and step.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.data import pipeline
from tl_dist.models import batch_norm
from tl_dist.models.classifier import MOVING, Classifier
from tl_dist.parallel import DataParallel, rows_of
from tl_dist.trainer.setup import Setup, StageInput, moving_statistics
from tl_dist.training.step import compiled

NUM_EXAMPLES = 1024
"""over which statistics are computed, rounded up to whole batches; at most the training split"""


class PreciseStatistics:
    """Recompute the statistics of one stage in one attempt; `tell` gets a note when that is first done."""

    def __init__(self, setup: Setup, stage_input: StageInput, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self._setup, self._stage_input, self._tell = setup, stage_input, tell
        cfg, model = setup.cfg, stage_input.model
        self._statistics = model.statistics
        self._momentum = max(model.momentum.values(), default=0.0)
        self._enough = stage_input.stage.first_step + round(3 / (1 - self._momentum))
        examples = min(NUM_EXAMPLES, setup.splits["train"].num_examples)
        self._num_batches = -(-examples // cfg.global_batch)
        self._average = averaging(model, setup.parallel, global_batch=cfg.global_batch, accumulate=cfg.accumulate)
        self._told = False

    @property
    def needed(self) -> bool:
        """Whether the moving averages still depend on where they began."""
        return bool(self._statistics) and self._setup.state.step < self._enough

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Recompute the statistics within the body, where needed; restore training's own after it.

        At the end of the run they have been recomputed for good, and are used as they are.
        """
        if not self.needed or self._setup.state.step == self._setup.total_steps:
            yield
            return
        moving = {path: variable.numpy() for path, variable in self._statistics.items()}
        self.compute()
        try:
            yield
        finally:
            for path, value in moving.items():
                self._statistics[path].assign(value)

    def compute(self) -> None:
        """Set the statistics of every replica to recomputed ones. Blocks."""
        setup, parallel = self._setup, self._setup.parallel
        step, number = setup.state.step, self._num_batches
        batches = pipeline.train_batches(
            self._stage_input.read_train,
            setup.order,
            rows=rows_of(parallel.rank, parallel.world_size, setup.cfg.global_batch),
            steps=range(step, step + number),
            threads=setup.threads,
        )
        with setup.examples.naming_bad("train", partial(setup.upcoming, number)):
            feed = parallel.feed(batches)
            setup.prepare_for("recomputing statistics")  # the first time it compiles
            for k in range(1, number + 1):
                self._average(feed, tf.constant(k, tf.int64))
                setup.beat("recomputing statistics")
        if self.needed and not self._told:
            self._told = True
            images = number * setup.cfg.global_batch
            text = (
                f"before step {self._enough:,} batch norm is evaluated by statistics recomputed over {images:,} "
                f"training images: moving averages of momentum {self._momentum:g} take that long (PreciseBN, "
                "arXiv 2105.07576)"
            )
            self._tell({"event": "note", "text": text})


def averaging(
    model: Classifier, parallel: DataParallel, *, global_batch: int, accumulate: int = 1
) -> Callable[[Any, Any], Any]:
    """Return `average(batches, k)`, which takes the k-th batch and sets the statistics to those of all k batches."""
    paths = [*model.statistics]
    mean_index = [paths.index(path.replace(MOVING[1], MOVING[0])) for path in paths]
    """for each statistic, the index of its layer's mean"""

    def moments_of(images: Any, centres: list[Any]) -> list[Any]:
        """Return for each statistic the rows times their mean, or times their mean square about its centre."""
        with model.batch_statistics(parallel.total_in_step) as moments:
            model.suffix(model.prefix(images))
        layer_moments, rows = model.moments_in_order(moments), tf.cast(tf.shape(images)[0], tf.float32)
        return [
            moment if k == mean else moment + rows * tf.square(layer_moments[mean] / rows - centres[mean])
            for k, (moment, mean) in enumerate(zip(layer_moments, mean_index, strict=True))
        ]

    def replica_step(batch: Any, k: Any) -> Any:
        """Update the statistics by one batch, in micro-batches as in training."""
        num_rows = int(batch.images.shape[0])
        parts = [rows_of(part, accumulate, num_rows) for part in range(min(accumulate, num_rows))]
        # Squares about the mean of the batches so far, which all replicas have, are small and lose no digits.
        centres = [batch_norm.read(variable) for variable in model.statistics.values()]
        sums: list[list[Any]] = []
        for rows in parts:
            with tf.control_dependencies(sums[-1] if sums else []):
                sums.append(moments_of(tf.identity(batch.images[rows.start : rows.stop]), centres))
        reduced = parallel.reduce_gradients([tf.add_n(same) for same in zip(*sums, strict=True)])
        share = 1.0 / tf.cast(k, tf.float32)
        moments = [moment / global_batch for moment in reduced]
        # The mean moves by `share` of its distance, and the mean square about it shrinks accordingly.
        moments = [
            moment if j == mean else tf.nn.relu(moment - share * tf.square(moments[mean] - centres[mean]))
            for j, (moment, mean) in enumerate(zip(moments, mean_index, strict=True))
        ]
        model.move_statistics(moments, tf.constant(0.0), momentum=1.0 - share)
        return tf.constant(0.0)

    @compiled
    def average(batches: Any, k: Any) -> Any:
        return parallel.run(replica_step, batches.get_next(), k)

    return average


def audit(setup: Setup) -> dict[str, Any] | None:
    """Return a record of every batch-norm layer as measured on all workers; None where there is none. Blocks.

    It tells for each layer whether its scale or offset is trained, how it normalizes in training, whether its
    statistics moved, and the largest absolute difference of a worker's statistics from the mean over all workers.
    """
    model, parallel, policy = setup.model, setup.parallel, setup.cfg.model.batch_norm
    start, now = setup.statistics, moving_statistics(model)
    if not now:
        return None
    mean = {path: total / parallel.world_size for path, total in parallel.total(now).items()}
    spread = np.zeros((parallel.world_size, len(now)))
    spread[parallel.rank] = [float(np.abs(value - mean[path]).max()) for path, value in now.items()]
    spreads = dict(zip(now, parallel.total({"spread": spread})["spread"].max(axis=0).tolist(), strict=True))
    layers = []
    for layer in filter(batch_norm.is_batch_norm, model.network.layers):
        path = f"backbone/{layer.name}"
        own = [path + end for end in MOVING]
        moves = any(p in model.statistics for p in own)
        layers.append(
            {
                "layer": layer.name,
                "trainable": any(f"{path}/{name}" in model.trainable for name in ("gamma", "beta")),
                "mode": ("sync" if policy == "auto" else policy) if moves else "inference",
                "statistics_moved": any(not np.array_equal(now[p], start[p]) for p in own),
                "spread": max(spreads[p] for p in own),
            }
        )
    return {"event": "batch_norm", "policy": policy, "layers": layers, "step": setup.state.step}
