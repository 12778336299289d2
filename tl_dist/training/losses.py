"""The loss of each example of a classification, and the weights of classes in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from tl_dist.data.batch import Batch
from tl_dist.scores import figures
from tl_dist.training.own_loss import OwnLoss

_LEAST = 1e-7
"""the least 1 - p in the focal loss, whose gradient has no limit there if gamma is below 1"""


MOST = -math.log(figures.LEAST)
"""that one example adds to the loss of an evaluation, as in the log loss"""


def counted(batch: Batch) -> Any:
    """Return float32 [rows]: 1 for an example, 0 for padding."""
    return tf.cast(batch.weights > 0, tf.float32)


@dataclass(frozen=True)
class Distillation:
    """The part of the loss that is the divergence from a teacher's probabilities, both softened by `temperature`."""

    temperature: float
    weight: float

    def losses(self, logits: Any, teacher: Any) -> Any:
        """Return float32 [rows]: temperature^2 times the Kullback-Leibler divergence, to keep the size of gradients.

        Hinton et al., arXiv 1503.02531, section 2, use the cross-entropy with the teacher. Less the teacher's entropy,
        it can reach 0, and has the same gradient.
        """
        theirs, ours = (tf.nn.log_softmax(values / self.temperature) for values in (teacher, logits))
        return self.temperature**2 * tf.reduce_sum(tf.exp(theirs) * (theirs - ours), axis=-1)


@dataclass(frozen=True)
class Objective:
    """Softmax cross-entropy or a variant of it; its sum over the global batch is divided by `global_batch`."""

    num_classes: int
    global_batch: int
    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None
    mixed: bool = False  # whether each label is a mixture of two classes (mixup, cutmix, soft labels)
    distillation: Distillation | None = None
    gamma: float = 0.0
    """above 0 the focal loss of Lin et al., arXiv 1708.02002, section 3.2, summed over the classes of a soft target"""
    adjustment: Sequence[float] | None = None
    """[classes], added to the logits: the logit-adjusted loss of Menon et al., arXiv 2007.07314, section 4.2"""
    own: OwnLoss | None = None
    """instead of the cross-entropy"""
    cumulative: bool = False
    """the sum of the binary cross-entropies of exceeding each grade: the loss of Cao et al., arXiv 1901.07884"""
    most = MOST  # that one example adds to the loss of an evaluation

    def counts(self, logits: Any, batch: Batch) -> dict[str, Any]:
        """Return the confusion matrix of the rows: float64 [true class, predicted class], without padding."""
        matrix = tf.math.confusion_matrix(
            batch.labels,
            tf.argmax(logits, axis=-1),
            self.num_classes,
            weights=tf.cast(counted(batch), tf.float64),
            dtype=tf.float64,
        )
        return {"confusion": matrix}

    def hits(self, logits: Any, labels: Any) -> Any:
        """Return float32 [rows]: 1 where the class is right."""
        return tf.cast(tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), labels), tf.float32)

    def over_views(self, logits: Any) -> Any:
        """Return the logarithms of the mean probabilities [rows, classes] of logits [views, rows, classes]."""
        return tf.reduce_logsumexp(tf.nn.log_softmax(logits), axis=0) - math.log(logits.shape[0])

    def losses(self, logits: Any, batch: Batch) -> Any:
        """Return float32 [rows]: the loss of each example times its weight; for a mixture, the mixture of the losses.

        Smoothing and class weights apply to labels, not to the teacher's predictions.
        """
        own = self._losses(logits, batch.labels)
        if self.mixed:
            own = batch.shares * own + (1 - batch.shares) * self._losses(logits, batch.others)
        if self.distillation is not None:
            weight = self.distillation.weight
            own = (1 - weight) * own + weight * self.distillation.losses(logits, batch.teacher)
        return own * batch.weights

    def _losses(self, logits: Any, labels: Any) -> Any:
        if self.adjustment is not None:
            logits += tf.constant(self.adjustment, tf.float32)
        if self.label_smoothing or self.gamma:
            on, off = 1.0 - self.label_smoothing, self.label_smoothing / self.num_classes
            targets = tf.one_hot(labels, self.num_classes) * on + off
        if self.own is not None:
            losses = self.own(labels, logits)
        elif self.cumulative:
            losses = _of_exceeding(tf.nn.log_softmax(logits), labels, self.num_classes)
        elif self.gamma:
            log_probabilities = tf.nn.log_softmax(logits)
            hard = tf.maximum(1.0 - tf.exp(log_probabilities), _LEAST) ** self.gamma
            losses = -tf.reduce_sum(targets * hard * log_probabilities, axis=-1)
        elif self.label_smoothing:
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
        else:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        if self.class_weights is not None:
            losses *= tf.gather(tf.constant(self.class_weights, tf.float32), labels)
        return losses


def _of_exceeding(log_probabilities: Any, labels: Any, num_grades: int) -> Any:
    """Return float32 [rows]: for each grade but the highest, -log of the probability of what `labels` say of it."""
    order = np.arange(num_grades)
    exceeds = order[None, :] > order[:-1, None]  # [grade to exceed, grade]

    def log_chance(which: NDArray[np.bool_]) -> Any:
        return tf.reduce_logsumexp(log_probabilities[:, None, :] + np.where(which, 0.0, -1e9).astype(np.float32), -1)

    is_above = labels[:, None] > order[None, :-1].astype(np.int32)
    return -tf.reduce_sum(tf.where(is_above, log_chance(exceeds), log_chance(~exceeds)), axis=-1)


def class_weights(
    wanted: str | Sequence[float] | None,
    labels: ArrayLike,
    num_classes: int,
    weights: NDArray[np.floating] | None = None,
    *,
    beta: float = 0.9999,
) -> list[float] | None:
    """Return the weight of each class in the loss that `loss.class_weights` asks for; None without weights.

    balanced: num_examples / (classes that occur * examples of the class), as scikit-learn's compute_class_weight; their
    mean over the examples is 1. effective: the inverse of the effective number of examples, (1 - beta^n) / (1 - beta),
    of Cui et al., arXiv 1901.05555; their sum is the number of classes that occur.

    A class without examples has weight 0. Examples with `weights` are counted by these, so that an example of weight 2
    counts like two equal ones.
    """
    if wanted is None or not isinstance(wanted, str):
        return None if wanted is None else list(wanted)
    counts = np.bincount(np.asarray(labels), weights, num_classes).astype(float)
    if wanted == "balanced":
        sizes, total = np.count_nonzero(counts) * counts, counts.sum()
    else:
        sizes = -np.expm1(counts * math.log(beta))
        occurring = sizes[sizes > 0]
        total = len(occurring) / (1 / occurring).sum()
    return [float(total) / size if size else 0.0 for size in sizes.tolist()]


def logit_adjustment(
    labels: ArrayLike, num_classes: int, weights: NDArray[np.floating] | None, tau: float
) -> list[float]:
    """Return tau times the logarithm of each class's share of the examples, counted by `weights`.

    A class without examples gets the share of one example.
    """
    counts = np.bincount(np.asarray(labels), weights, num_classes).astype(float)
    shares = np.where(counts > 0, counts, 1.0) / counts.sum()
    return (tau * np.log(shares)).tolist()
