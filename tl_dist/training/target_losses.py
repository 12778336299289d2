"""The loss of each example whose answer is not one class: several labels, or numbers; the mean over these."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.config import LossConfig
from tl_dist.data.batch import Batch
from tl_dist.training.losses import counted
from tl_dist.training.own_loss import OwnLoss

_LEAST = 1e-8
"""the least probability in the asymmetric loss, as in the authors' code"""


@dataclass(frozen=True)
class TargetObjective:
    """A loss of targets, used as `losses.Objective`; its sum over the global batch is divided by `global_batch`."""

    loss: LossConfig
    num_classes: int
    global_batch: int
    mixed: bool = False  # whether each target is a mixture of two (mixup, cutmix)
    pos_weight: Sequence[float] | None = None
    """[labels], of the labels that an image has"""
    spread: Any = None
    """[targets], numbers alone: the unit in which they are compared"""
    own: OwnLoss | None = None
    """instead of `loss`"""
    most = float("inf")

    def losses(self, outputs: Any, batch: Batch) -> Any:
        """Return float32 [rows]: the loss of each example times its weight; of a mixture, the mixture of the losses."""
        own = self._losses(outputs, batch.labels)
        if self.mixed:
            own = batch.shares * own + (1 - batch.shares) * self._losses(outputs, batch.others)
        return own * batch.weights

    def _losses(self, outputs: Any, targets: Any) -> Any:
        if self.own is not None:
            return self.own(targets, outputs)
        losses = {
            "binary_cross_entropy": self._binary_cross_entropy,
            "asymmetric": self._asymmetric,
            "squared_error": lambda outputs, targets: tf.square(self._errors(outputs, targets)),
            "absolute_error": lambda outputs, targets: tf.abs(self._errors(outputs, targets)),
            "huber": self._huber,
        }
        return tf.reduce_mean(losses[self.loss.name](outputs, targets), axis=-1)

    def _binary_cross_entropy(self, logits: Any, labels: Any) -> Any:
        if self.pos_weight is None:
            return tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
        return tf.nn.weighted_cross_entropy_with_logits(labels, logits, tf.constant(self.pos_weight, tf.float32))

    def _asymmetric(self, logits: Any, labels: Any) -> Any:
        """Focus on labels that are hard, and forget those that an image surely has not (Ridnik et al., 2009.14119)."""
        has, has_not = tf.sigmoid(logits), tf.minimum(1 - tf.sigmoid(logits) + self.loss.clip, 1.0)
        probability = labels * has + (1 - labels) * has_not
        gamma = labels * self.loss.gamma_positive + (1 - labels) * self.loss.gamma_negative
        # The power of 0 has no gradient: where a label is certain, its loss is 0, too.
        hard = tf.pow(tf.maximum(1 - probability, _LEAST), gamma)
        return -hard * tf.math.log(tf.maximum(probability, _LEAST))

    def _huber(self, values: Any, targets: Any) -> Any:
        errors, delta = tf.abs(self._errors(values, targets)), self.loss.delta
        return tf.where(errors <= delta, 0.5 * errors**2, delta * (errors - 0.5 * delta))

    def _errors(self, values: Any, targets: Any) -> Any:
        return (values - targets) / self.spread

    @property
    def _of_values(self) -> bool:
        return self.spread is not None

    def counts(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Return the number of rows whose answer is right as a whole, without padding; NaN for numbers."""
        return {"correct": tf.cast(tf.reduce_sum(self.hits(outputs, batch.labels) * counted(batch)), tf.float64)}

    def hits(self, outputs: Any, targets: Any) -> Any:
        """Return float32 [rows]: 1 where every label is right; NaN for numbers, which are never right or wrong."""
        if self._of_values:
            return tf.fill(tf.shape(outputs)[:1], float("nan"))
        return tf.cast(tf.reduce_all(tf.equal(outputs >= 0, targets > 0.5), axis=-1), tf.float32)

    def over_views(self, outputs: Any) -> Any:
        """Return the logits of the mean probabilities, or the mean values, of outputs [views, rows, targets]."""
        if self._of_values:
            return tf.reduce_mean(outputs, axis=0)
        with_label, without = (tf.reduce_logsumexp(tf.math.log_sigmoid(z), axis=0) for z in (outputs, -outputs))
        return with_label - without


def pos_weights(
    loss: LossConfig, targets: NDArray[np.float32], weights: NDArray[np.floating] | None = None
) -> list[float] | None:
    """Return the weight of each label that an image has: as given, or images without it / images with it.

    Images with `weights` are counted by these. A label that no image has counts as if one had it.
    """
    if loss.pos_weight != "balanced":
        return None if loss.pos_weight is None else list(loss.pos_weight)
    counts = np.ones(len(targets)) if weights is None else weights.astype(np.float64)
    having = counts @ targets
    having = np.where(having > 0, having, counts.mean())
    return ((counts.sum() - having) / having).tolist()
