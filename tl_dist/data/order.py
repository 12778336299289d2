"""Which example a step sees, as a pure function of (seed, step): the whole state of the data order is one number.

The infinite example stream is a concatenation of epochs, each a keyed permutation of the source. A global batch is
`global_batch` consecutive positions of it, so a batch may straddle two epochs and every example is used exactly
once per epoch: there is no remainder rule. The permutation is computed, never stored (`RandomIndexShuffle`, a
cycle-walking block cipher), as in levanter and Mosaic's Streaming "elastic determinism".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Order:
    """The order of training examples; `num_examples` is the size of the source, `seed` the run's."""

    seed: int
    num_examples: int
    global_batch: int

    def positions(self, step: Any, rows: Any) -> Any:
        """Place in the infinite stream of the given rows of the batch of `step`; int64, shape of `rows`."""
        return step * self.global_batch + rows

    def index(self, positions: Any) -> Any:
        """Row in the source at each position; int64 tensors of any one shape. Traced or eager."""
        import tensorflow as tf

        positions = tf.convert_to_tensor(positions, tf.int64)
        flat = tf.reshape(positions, [-1])
        # The public wrapper pads a batch of seeds of length 2 wrongly; the raw op takes [n, 3].
        seeds = tf.stack(
            [
                tf.fill(tf.shape(flat), tf.constant(self.seed, tf.int64)),
                flat // self.num_examples,
                tf.zeros_like(flat),
            ],
            axis=1,
        )
        shuffled = tf.raw_ops.RandomIndexShuffle(
            index=flat % self.num_examples,
            seed=seeds,
            max_index=tf.fill(tf.shape(flat), tf.constant(self.num_examples - 1, tf.int64)),
            rounds=4,
        )
        return tf.reshape(shuffled, tf.shape(positions))

    def epoch(self, step: int) -> float:
        """Epochs done when `step` steps are done."""
        return step * self.global_batch / self.num_examples

    def steps(self, epochs: float) -> int:
        """Whole steps that cover `epochs` (the last batch may reach into the next epoch)."""
        return max(1, math.ceil(epochs * self.num_examples / self.global_batch - 1e-9))
