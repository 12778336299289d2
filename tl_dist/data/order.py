"""The order of training examples as a pure function of (seed, step): its whole state is one number.

The infinite example stream is a concatenation of epochs, each a keyed permutation of the source. A global batch is
`global_batch` consecutive positions of it, so a batch may straddle two epochs and every example is used exactly
once per epoch: there is no remainder rule. The permutation is computed, never stored (`RandomIndexShuffle`, a
cycle-walking block cipher), as in levanter and Mosaic's Streaming "elastic determinism". For storage with slow random
access, blocks of neighbours are permuted, then rows within windows of blocks, which is a pure function as well.

Up to 65,536 examples the cipher uses the low 8 bits of each of three key words, so keys are hashed: small raw numbers
such as (seed, epoch) would be nearly equal keys, and their permutations nearly the identity. It does 8 rounds, like
TensorFlow's own global shuffle: 4 leave traces of the order of the source even with hashed keys.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from tl_dist.data import random as draws

VERSION = 2
"""of the order, in the identity of every run: increase it with any change of which example is at a position"""
_ROUNDS = 8
_MOST = 1 << 17  # positions that `batch_deviation` looks at


@dataclass(frozen=True, eq=False)
class ByClass:
    """The rows of each class that has examples."""

    rows: NDArray[np.int64]
    """[examples], the first class's first"""
    classes: NDArray[np.int64]
    counts: NDArray[np.int64]
    """of rows; shaped as `classes`"""

    @classmethod
    def of(cls, labels: ArrayLike) -> Self:
        """Group the rows of examples by their labels."""
        return cls(np.argsort(labels, kind="stable"), *np.unique(labels, return_counts=True))

    def draws_per_epoch(self) -> list[tuple[int, float]]:
        """Return, for each class, how often each of its examples is drawn in as many draws as there are examples."""
        draws = len(self.rows) / len(self.counts) / self.counts
        return list(zip(self.classes.tolist(), draws.tolist(), strict=True))


@dataclass(frozen=True)
class Order:
    """The order of training examples; `num_examples` is the size of the source, `seed` the run's.

    If `block` is not 0, blocks of so many neighbours are permuted, and then the rows within each `window` consecutive
    blocks: a worker reads from about `window` places of the storage at a time.
    """

    seed: int
    num_examples: int
    global_batch: int
    block: int = 0
    window: int = 1
    by_class: ByClass | None = None
    """draw classes equally often; without blocks"""

    def positions(self, step: Any, rows: Any) -> Any:
        """Return the positions in the infinite stream of `rows` of the batch of `step`; int64, shape of `rows`."""
        return step * self.global_batch + rows

    def index(self, positions: Any) -> Any:
        """Return the row of the source at each position, int64 of the same shape. Traced or eager."""
        positions = tf.convert_to_tensor(positions, tf.int64)
        flat = tf.reshape(positions, [-1])
        epochs, offsets = flat // self.num_examples, flat % self.num_examples
        if self.by_class is not None:
            rows = self._balanced(flat, self.by_class)
        elif not self.block:
            rows = self._shuffled(offsets, self.num_examples, "examples", epochs)
        else:
            rows = self._of_blocks(self._within_windows(offsets, epochs), epochs)
        return tf.reshape(rows, tf.shape(positions))

    def _balanced(self, flat: Any, by_class: ByClass) -> Any:
        """Permute a list in which each class is as long as the largest, its examples dealt to it in turn."""
        longest, num_classes = int(by_class.counts.max()), len(by_class.counts)
        rounds, offsets = flat // (longest * num_classes), flat % (longest * num_classes)
        places = self._shuffled(offsets, longest * num_classes, "examples", rounds)
        which, turns = places // longest, rounds * longest + places % longest
        starts = np.cumsum(by_class.counts) - by_class.counts
        within = turns % tf.gather(tf.constant(by_class.counts), which)
        return tf.gather(tf.constant(by_class.rows), tf.gather(tf.constant(starts), which) + within)

    def _within_windows(self, offsets: Any, epochs: Any) -> Any:
        size = min(self.block * self.window, self.num_examples)
        number = offsets // size
        begin = number * size
        length = tf.minimum(self.num_examples - begin, size)
        num_windows = -(-self.num_examples // size)
        return begin + self._shuffled(offsets - begin, length, "windows", epochs * num_windows + number)

    def _of_blocks(self, offsets: Any, epochs: Any) -> Any:
        """Permute the whole blocks, and insert the remainder, which is shorter, at a random place."""
        number, rest = divmod(self.num_examples, self.block)
        each, which = tf.unique(epochs)
        place = tf.gather(self._shuffled(tf.zeros_like(each), number + 1, "rest", each), which) * self.block
        before, after = offsets < place, offsets >= place + rest
        among = tf.where(before, offsets, tf.where(after, offsets - rest, 0))
        blocks = self._shuffled(among // self.block, max(number, 1), "blocks", epochs)
        in_rest = number * self.block + offsets - place
        return tf.where(before | after, blocks * self.block + among % self.block, in_rest)

    def _shuffled(self, index: Any, length: Any, purpose: str, numbers: Any) -> Any:
        """Permute `index` int64 [n] in [0, length) by purpose and number; `length` [n] or a scalar."""
        keys = draws.bits(self.seed, numbers, f"order/{purpose}", 3)
        last = tf.broadcast_to(tf.cast(length, tf.int64) - 1, tf.shape(index))
        # The public wrapper pads a batch of seeds of length 2 wrongly; the raw op takes [n, 3].
        return tf.raw_ops.RandomIndexShuffle(index=index, seed=keys, max_index=last, rounds=_ROUNDS)

    def steps(self, epochs: float) -> int:
        """Return the number of whole steps that cover `epochs` (the last batch may reach into the next epoch)."""
        return max(1, math.ceil(epochs * self.num_examples / self.global_batch - 1e-9))


def batch_deviation(order: Order, labels: NDArray[np.int32]) -> float:
    """Return the mean total variation, in [0, 1], between the class shares of a batch and of the whole set.

    Some of it is chance, so compare it with a full shuffle. Over the first epoch, or 131,072 examples of it.
    """
    num_classes = int(labels.max()) + 1
    batch = min(order.global_batch, order.num_examples)
    num_batches = max(1, min(order.num_examples, _MOST) // batch)
    seen = labels[order.index(np.arange(num_batches * batch, dtype=np.int64)).numpy()]
    numbers = np.repeat(np.arange(num_batches), batch) * num_classes + seen
    shares = np.bincount(numbers, minlength=num_batches * num_classes).reshape(num_batches, -1) / batch
    expected = np.bincount(labels, minlength=num_classes) / len(labels)
    return float(np.abs(shares - expected).sum(axis=1).mean() / 2)
