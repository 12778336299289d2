"""Scale updates to the norm of the weights, layer by layer, for large batches: LARS and LAMB.

LARS: You, Gitman and Ginsburg, arXiv 1708.03888. LAMB: You et al., arXiv 1904.00962. A layer is a variable with two
axes or more; as in the authors' code, biases and normalization are updated by plain SGD or Adam.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def is_adapted(variable: Any) -> bool:
    """Return whether this variable's updates are scaled to its norm."""
    return len(variable.shape) > 1


def lars(weight: Any, grad: Any, away: Any, decay: float, coefficient: float) -> Any:
    """Return the gradient for momentum: with `decay * away` added, and scaled to `coefficient` times the weight's norm.

    `away` is what decays: the weight itself, or its distance from its start. Where either norm is 0 the gradient keeps
    its length: a weight of 0 could never grow otherwise.
    """
    length, slope = tf.norm(weight), tf.norm(grad)
    ratio = coefficient * length / (slope + decay * tf.norm(away) + 1e-8)
    return (grad + decay * away) * tf.where((length > 0) & (slope > 0), ratio, 1.0)


def lamb(weight: Any, direction: Any, away: Any, decay: float) -> Any:
    """Return the step at a rate of 1: Adam's `direction` with `decay * away` added, scaled to the weight's norm."""
    direction += decay * away
    length, slope = tf.norm(weight), tf.norm(direction)
    return direction * tf.where((length > 0) & (slope > 0), tf.math.divide_no_nan(length, slope), 1.0)
