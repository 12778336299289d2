"""A loss that the user has written: checked to be a loss of rows, so that sums over any number of workers are exact."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.config import code

_ROWS = 6  # on which it is tried


@dataclass(frozen=True)
class OwnLoss:
    """`function(targets, outputs)` of a config: the loss of each row, float32 [rows].

    `outputs` are what the user's own model gives, which may end in probabilities, or the logits or values of a head.
    """

    name: str
    function: Callable[[Any, Any], Any]
    outputs: Callable[[Any], Any]
    """logits or values [rows, classes] -> outputs [rows, ...]"""

    def __call__(self, targets: Any, logits: Any) -> Any:
        """Return float32 [rows]; refuse (64) a function that raises, or gives anything but a loss for each row."""
        who = f"loss '{code.short(self.name)}'"
        outputs = self.outputs(logits)
        losses = code.called(self.name, who, lambda: tf.convert_to_tensor(self.function(targets, outputs)))
        if losses.shape.rank == 0:
            what = "returns one number for all rows, whose sum over workers would depend on how the rows are divided"
            fix = "return the loss of each row: leave out the mean over rows (in Keras's losses: reduction=None)"
            raise code.refused(who, what, fix)
        if losses.shape.rank != 1 or losses.shape[0] not in (None, logits.shape[0]):
            what = f"returns shape {tuple(losses.shape)} for {logits.shape[0]} rows"
            raise code.refused(who, what, f"return one loss for each row, of shape ({logits.shape[0]},)")
        return tf.cast(losses, tf.float32)

    def check(self, truth: NDArray[Any], num_outputs: int) -> None:
        """Try it on rows of `truth` [examples, ...] with random outputs; refuse (64) what N workers could not compute.

        That is a loss with state, random numbers or a clock, and one whose rows depend on each other.
        """
        who, targets = f"loss '{code.short(self.name)}'", tf.constant(np.resize(truth, (_ROWS, *truth.shape[1:])))
        logits = tf.constant(np.random.default_rng(0).normal(size=(_ROWS, num_outputs)), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            first = self(targets, logits)
        slopes = tape.gradient(first, logits)
        again, alone = self(targets, logits).numpy(), self(targets[:2], logits[:2]).numpy()
        first = first.numpy()
        if slopes is None or not np.any(slopes):
            raise code.refused(who, "has no gradient: it does not depend on the outputs", "use them in it, unrounded")
        if not np.isfinite(first).all():
            raise code.refused(
                who, f"gives {first[~np.isfinite(first)][0]} for outputs around 0", "bound its logarithms"
            )
        if not np.array_equal(first, again):
            what = "gives another value for the same rows the second time, so no run could be resumed"
            raise code.refused(who, what, "make it depend on its arguments alone: no state, clock or random numbers")
        if not np.allclose(first[:2], alone, rtol=1e-4, atol=1e-6):
            what = "gives a row another loss beside other rows, so N workers would not compute what one computes"
            raise code.refused(who, what, "make the loss of a row depend on that row alone")
