"""Mixup and cutmix: each example is mixed with its neighbour in the stream, even if another worker has that one.

Positions 2k and 2k + 1 are a pair; both draw by the pair's number, so the mixture is the same with any number of
workers. Labels remain two numbers and a share: the loss of the mixture is exactly the mixture of the losses.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.data import random as draws
from tl_dist.data.batch import Batch

_QUANTILES = 4097


@dataclass(frozen=True)
class Mixing:
    """Mixes pairs of examples: `mixup` and `cutmix` are the alphas of Beta distributions, 0 for never."""

    seed: int
    mixup: float
    cutmix: float

    @staticmethod
    def whole_pairs(rows: range, global_batch: int) -> range:
        """Return a range of rows, from the first of a pair, that covers the pairs of `rows` at any step."""
        if global_batch % 2:  # the parity of a row changes from step to step
            return range(len(rows) + 1 + (len(rows) + 1) % 2)
        begin, end = rows.start - rows.start % 2, rows.stop + rows.stop % 2
        return range(begin, end)

    def __call__(self, batch: Batch) -> Batch:
        """Mix a batch of whole pairs."""
        images, others, shares = self.mixed(batch.images, batch.labels, batch.positions)
        return batch._replace(images=images, others=others, shares=shares)

    def mixed(self, images: Any, labels: Any, positions: Any) -> tuple[Any, Any, Any]:
        """Mix whole pairs, uint8 [rows, h, w, 3]; returns images, the partners' labels and shares of the own labels."""
        drawn = draws.uniform(self.seed, positions // 2, "mixing", 5)
        cut = drawn[:, 0] < (0.5 if self.mixup and self.cutmix else float(self.cutmix > 0))
        alphas = (self._quantiles(self.mixup), self._quantiles(self.cutmix))
        at = tf.cast(drawn[:, 1] * (_QUANTILES - 1), tf.int32)
        share = tf.where(cut, tf.gather(alphas[1], at), tf.gather(alphas[0], at))
        partners = _swapped(images)
        inside, pasted = _box(images, share, drawn[:, 2:4])
        weight = share[:, None, None, None]
        blended = tf.cast(
            tf.round(weight * tf.cast(images, tf.float32) + (1 - weight) * tf.cast(partners, tf.float32)),
            tf.uint8,
        )
        images = tf.where(cut[:, None, None, None], tf.where(inside, partners, images), blended)
        return images, _swapped(labels), tf.where(cut, 1 - pasted, share)

    @staticmethod
    def _quantiles(alpha: float) -> Any:
        """Tabulate the quantile function of Beta(alpha, alpha), float32 [_QUANTILES]."""
        from scipy.stats import beta

        at = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        return tf.constant(beta.ppf(at, alpha, alpha) if alpha else np.ones(_QUANTILES), tf.float32)


def _swapped(rows: Any) -> Any:
    """Swap each row with its partner."""
    pairs = tf.reshape(rows, [-1, 2, *rows.shape[1:]])
    return tf.reshape(tf.reverse(pairs, [1]), tf.shape(rows))


def _box(images: Any, share: Any, corner: Any) -> tuple[Any, Any]:
    """Return masks [rows, h, w, 1] of boxes of 1 - `share` of the area at random places, and the shares inside."""
    size = images.shape[1]
    half = tf.sqrt(1 - share)[:, None] * size / 2
    middle = corner * size
    begin, end = tf.round(tf.maximum(middle - half, 0)), tf.round(tf.minimum(middle + half, float(size)))
    along = tf.range(size, dtype=tf.float32)
    inside = (along >= begin[:, :, None]) & (along < end[:, :, None])
    box = (inside[:, 0, :, None] & inside[:, 1, None, :])[..., None]
    return box, tf.reduce_prod(end - begin, axis=1) / (size * size)
