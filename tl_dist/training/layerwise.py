"""Updates whose size is a fraction of the weights' own, layer by layer, for large batches: LARS and LAMB.

LARS: You, Gitman and Ginsburg, arXiv 1708.03888. LAMB: You et al., arXiv 1904.00962. A layer is a variable with two
axes or more; as in their authors' code, biases and what normalizes are left out: theirs is the update of SGD, of Adam.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def is_adapted(variable: Any) -> bool:
    """Whether the size of this variable's updates follows that of its values."""
    return len(variable.shape) > 1


def lars(weight: Any, grad: Any, away: Any, decay: float, coefficient: float) -> Any:
    """The gradient that momentum sums up: `decay * away` added, and made `coefficient` times as long as the weight.

    `away` is what decays: the weight itself, or its way from where it started. Where either norm is 0, so as to leave
    0 at all, the gradient keeps its length.
    """
    length, slope = tf.norm(weight), tf.norm(grad)
    ratio = coefficient * length / (slope + decay * tf.norm(away) + 1e-8)
    return (grad + decay * away) * tf.where((length > 0) & (slope > 0), ratio, 1.0)


def lamb(weight: Any, direction: Any, away: Any, decay: float) -> Any:
    """The step for a rate of 1: Adam's `direction` with `decay * away` added, made as long as the weight."""
    direction += decay * away
    length, slope = tf.norm(weight), tf.norm(direction)
    return direction * tf.where((length > 0) & (slope > 0), tf.math.divide_no_nan(length, slope), 1.0)
