"""One process, one device: every sum is the value itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from tl_dist.config import Config
from tl_dist.parallel import gpus
from tl_dist.parallel.feed import fed, gpu_of_process

T = TypeVar("T")


class SingleDevice:
    """The reference that the other strategies must agree with."""

    rank = 0
    world_size = 1
    num_replicas = 1

    def __init__(self, config: Config) -> None:
        del config
        # A notebook may have used TensorFlow already: then it stays as it is.
        with suppress(RuntimeError):
            gpus.take_first(1)

    def scope(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def feed(self, batches: Any) -> Iterator[Any]:
        return fed(batches, gpu_of_process())

    def run(self, fn: Callable[..., T], batch: Any, step: Any) -> T:
        return fn(batch, step)

    def reduce_gradients(self, grads: Sequence[Any]) -> list[Any]:
        return [tf.cast(g, tf.float32) for g in grads]

    def total_in_step(self, value: Any, name: str) -> Any:
        del name
        return value

    def replica(self) -> Any:
        return 0

    def total(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: np.asarray(value, np.float64) for key, value in values.items()}

    def gather(self, text: bytes) -> list[bytes]:
        return [text]

    def broadcast(self, variables: Sequence[Any]) -> None:
        pass  # there is one copy

    def naming_lost_peers(self) -> AbstractContextManager[None]:
        return nullcontext()
