"""Statistics of batch norm recomputed over training batches, where too few steps have moved the moving ones.

A moving average needs about 3 / (1 - momentum) steps to forget where it began: 3,000 in MobileNet. Until then
evaluation takes mean and variance of the population of some batches, with the weights as they are: E[m] and
E[s^2 + m^2] - E[m]^2 over the means m and variances s^2 of what was normalized together, weighted by its rows
(PreciseBN: Wu and Johnson, arXiv 2105.07576, appendix, and fvcore's update_bn_stats). How far batches differ from each
other is part of it: so a layer whose inputs no other one has normalized gets the variance of all of them, however they
were divided. The batches are those that training would see next, a function of seed and step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import tensorflow as tf

from tl_dist.data import pipeline
from tl_dist.models import batch_norm
from tl_dist.models.classifier import MOVING, Classifier
from tl_dist.parallel import DataParallel, rows_of
from tl_dist.trainer.setup import Setup
from tl_dist.trainer.stage_input import StageInput
from tl_dist.training.step import compiled

NUM_EXAMPLES = 1024
"""over which they are computed, in whole batches, or all of the training split where that is smaller"""


class PreciseStatistics:
    """Those of one stage in one attempt; `tell` gets one record that says so, when they are first computed."""

    def __init__(
        self, setup: Setup, stage_input: StageInput, tell: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._setup, self._stage_input, self._tell = setup, stage_input, tell
        self._statistics = stage_input.model.statistics
        self._momentum = max(stage_input.model.momentum.values(), default=0.0)
        self._enough = stage_input.stage.first_step + round(3 / (1 - self._momentum))
        examples = min(NUM_EXAMPLES, setup.splits["train"].num_examples)
        cfg = setup.cfg
        self._num_batches = -(-examples // cfg.global_batch)
        self._average = averaging(
            stage_input.model, setup.parallel, global_batch=cfg.global_batch, accumulate=cfg.accumulate
        )
        self._told = False

    @property
    def needed(self) -> bool:
        """Whether the moving statistics are still those of the begin of the stage."""
        return bool(self._statistics) and self._setup.state.step < self._enough

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Within it the statistics are the recomputed ones where those are needed; training's own are not touched.

        At the end of the run they have been computed for good.
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
        """Set the statistics to the recomputed ones, on every replica. Blocks."""
        setup, parallel = self._setup, self._setup.parallel
        step, number = setup.state.step, self._num_batches
        batches = pipeline.train_batches(
            self._stage_input.read_train,
            setup.order,
            rows=rows_of(parallel.rank, parallel.world_size, setup.cfg.global_batch),
            from_step=step,
            to_step=step + number,
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
    """`average(batches, k)`: make the statistics those of the population of k batches; the next one is the k-th."""
    paths = [*model.statistics]
    mean_of = [paths.index(path.replace(MOVING[1], MOVING[0])) for path in paths]
    """of each statistic, where the mean of its layer is"""

    def moments_of(images: Any, centres: list[Any]) -> list[Any]:
        """Of each statistic: the rows times their mean, or times their mean square about the centre of that."""
        with model.batch_statistics(parallel.total_in_step) as moments:
            model.suffix(model.prefix(images))
        found, rows = model.moments_in_order(moments), tf.cast(tf.shape(images)[0], tf.float32)
        return [
            moment if k == mean else moment + rows * tf.square(found[mean] / rows - centres[mean])
            for k, (moment, mean) in enumerate(zip(found, mean_of, strict=True))
        ]

    def replica_step(batch: Any, k: Any) -> Any:
        """As in training a replica takes its rows in micro-batches."""
        num_rows = int(batch.images.shape[0])
        parts = [rows_of(part, accumulate, num_rows) for part in range(min(accumulate, num_rows))]
        # About the mean of the batches so far, which all replicas have: squares of what is near 0 lose no digits.
        centres = [batch_norm.read(variable) for variable in model.statistics.values()]
        sums: list[list[Any]] = []
        for rows in parts:
            with tf.control_dependencies(sums[-1] if sums else []):
                sums.append(moments_of(tf.identity(batch.images[rows.start : rows.stop]), centres))
        reduced = parallel.reduce_gradients([tf.add_n(same) for same in zip(*sums, strict=True)])
        share = 1.0 / tf.cast(k, tf.float32)
        moments = [moment / global_batch for moment in reduced]
        # The mean moves by a share of what it is off: so much less is the mean square about it, once it has moved.
        moments = [
            moment if j == mean else tf.nn.relu(moment - share * tf.square(moments[mean] - centres[mean]))
            for j, (moment, mean) in enumerate(zip(moments, mean_of, strict=True))
        ]
        model.move_statistics(moments, tf.constant(0.0), momentum=1.0 - share)
        return tf.constant(0.0)

    @compiled
    def average(batches: Any, k: Any) -> Any:
        return parallel.run(replica_step, batches.get_next(), k)

    return average
