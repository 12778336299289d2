"""Train in one process on one device: every sum is the value itself."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import tensorflow as tf

from tl_dist.config import Config
from tl_dist.parallel import gpus
from tl_dist.parallel.replicas import OneProcess, OneReplica


class SingleDevice(OneProcess, OneReplica):
    """One replica in one process: the reference that the other strategies must agree with."""

    num_replicas = 1

    def __init__(self, config: Config) -> None:
        del config
        # A notebook may have initialised TensorFlow already: then its devices stay as they are.
        with suppress(RuntimeError):
            gpus.take_first(1)

    def reduce_gradients(self, grads: Sequence[Any]) -> list[Any]:
        """Return the gradients in float32."""
        return [tf.cast(g, tf.float32) for g in grads]

    def total_in_step(self, value: Any, name: str) -> Any:
        """Return the value itself."""
        del name
        return value
