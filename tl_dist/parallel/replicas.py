"""What strategies share: a process with one replica, a process without peers, one of several processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from tl_dist.parallel.buckets import BUCKET_BYTES, buckets, num_bytes
from tl_dist.parallel.feed import fed, gpu_of_process

T = TypeVar("T")

MAX_GATHERED = 3  # workers up to which gathering bfloat16 moves fewer bytes than reducing float32
BROADCAST_BYTES = 64 * 2**20  # a state is twice in memory while it travels, so large ones go in parts


class OneReplica:
    """A process that computes on one device: the GPU that it has taken, or the CPU."""

    rank: int

    def scope(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def feed(self, batches: Any) -> Iterator[Any]:
        return fed(batches, gpu_of_process())

    def run(self, fn: Callable[..., T], batch: Any, step: Any) -> T:
        return fn(batch, step)

    def replica(self) -> Any:
        return self.rank


class OneProcess:
    """A process that shares its batches with no other: what is summed over processes is its own."""

    rank: int = 0
    world_size: int = 1

    def total(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: np.asarray(value, np.float64) for key, value in values.items()}

    def gather(self, text: bytes) -> list[bytes]:
        return [text]

    def broadcast(self, variables: Sequence[Any]) -> None:
        pass  # one copy, or copies that are assigned at once

    def naming_lost_peers(self) -> AbstractContextManager[None]:
        return nullcontext()


class OneOfMany(OneReplica):
    """One of several processes with a replica each; a strategy says by what their tensors travel."""

    world_size: int
    num_replicas: int
    wire: str = "auto"
    """the number format that was asked for gradients"""
    reduced_bytes: int = 0  # of gradients, by each step on this worker
    bucket_bytes: int = BUCKET_BYTES
    last_bytes: int = 0

    def _sum(self, value: Any, name: str, *, on_cpu: bool = False) -> Any:
        """The same bits on every worker."""
        raise NotImplementedError

    def _all_reduce(self, tensors: Sequence[Any], name: str) -> list[Any]:
        """The sum of each of the tensors, in their own number format: float32 or float16."""
        raise NotImplementedError

    def _gather_numbers(self, flat: Any, name: str) -> Any:
        """What all workers have of 16-bit numbers, in one order on each of them, bit for bit."""
        raise NotImplementedError

    def _exchange_numbers(self, flat: Any, name: str) -> Any:
        """Of 16-bit numbers in as many parts as workers, the part of this worker's place in that order, from each."""
        raise NotImplementedError

    def reduce_gradients(self, grads: Sequence[Any]) -> list[Any]:
        if self.world_size == 1:
            return [tf.cast(g, tf.float32) for g in grads]
        few = self.world_size <= MAX_GATHERED
        if not few and self.wire == "auto":
            grads = [tf.cast(g, tf.float32) for g in grads]
        ways = {
            tf.float32: self._all_reduce,
            tf.float16: self._all_reduce,
            tf.bfloat16: self._gather_and_sum if few else self._exchange_and_sum,
        }
        return self._reduced_in_buckets(grads, ways)

    def _gather_and_sum(self, tensors: Sequence[Any], name: str) -> list[Any]:
        """The sum of bfloat16 tensors, added up in float32 in one order: the same bits on all workers.

        Each worker sends its part once to every other: for up to three workers that is less than the ring of float32
        sums, which every worker passes on twice.
        """
        return split_like(self._sum_of_parts(self._gather_numbers(joined(tensors), name)), tensors)

    def _exchange_and_sum(self, tensors: Sequence[Any], name: str) -> list[Any]:
        """The same for more workers: each adds up one part of the whole, which it rounds to bfloat16 for the others.

        Every worker sends the whole out twice, as in a ring, but at two bytes for a number in place of four.
        """
        flat = joined(tensors)
        size = int(flat.shape[0])
        flat = tf.pad(flat, [[0, -size % self.world_size]])
        mine = self._sum_of_parts(self._exchange_numbers(flat, f"{name}_parts"))
        sums = tf.reshape(self._gather_numbers(tf.cast(mine, tf.bfloat16), name), flat.shape)
        return split_like(tf.cast(sums[:size], tf.float32), tensors)

    def total_in_step(self, value: Any, name: str) -> Any:
        if self.world_size == 1:
            return value

        @tf.custom_gradient
        def total(local: Any) -> tuple[Any, Callable[[Any], Any]]:
            return self._sum(local, name), lambda upstream: self._sum(upstream, f"{name}_gradient")

        return total(value)

    def total(self, values: Mapping[str, Any]) -> dict[str, Any]:
        arrays = {key: np.asarray(value, np.float64) for key, value in values.items()}
        if self.world_size == 1:
            return arrays
        flat = np.concatenate([array.ravel() for array in arrays.values()])
        sums = self._sum(flat, "total", on_cpu=True).numpy()
        parts = np.split(sums, np.cumsum([array.size for array in arrays.values()])[:-1])
        return {
            key: part.reshape(array.shape) for (key, array), part in zip(arrays.items(), parts, strict=True)
        }

    def _reduced_in_buckets(
        self,
        grads: Sequence[Any],
        ways: Mapping[Any, Callable[[Sequence[Any], str], Sequence[Any]]],
    ) -> list[Any]:
        """In float32. `ways` holds for each number format how a list of tensors is summed, under a name."""
        self.reduced_bytes = 0
        reduced: dict[int, Any] = {}
        for dtype, reduce in ways.items():
            chosen = [k for k, g in enumerate(grads) if g.dtype == dtype]
            in_buckets = buckets([num_bytes(grads[k]) for k in chosen], self.bucket_bytes, self.last_bytes)
            for number, bucket in enumerate(in_buckets):
                members = [chosen[k] for k in bucket]
                sums = reduce([grads[k] for k in members], f"gradients_{dtype.name}_{number}")
                self.reduced_bytes += sum(num_bytes(grads[k]) for k in members)
                reduced.update(zip(members, sums, strict=True))
        return [tf.cast(reduced[k], tf.float32) for k in range(len(grads))]

    def _sum_of_parts(self, received: Any) -> Any:
        """float32: the sum over the workers of bfloat16 numbers, of which each has sent as many, in the order given."""
        parts = tf.unstack(tf.reshape(received, [self.world_size, -1]))
        return functools.reduce(tf.add, [tf.cast(part, tf.float32) for part in parts])


def joined(tensors: Sequence[Any]) -> Any:
    """All of their values in one row."""
    return tf.concat([tf.reshape(t, [-1]) for t in tensors], axis=0)


def split_like(flat: Any, like: Sequence[Any]) -> list[Any]:
    """The tensors that lie one after another in `flat`, in the shapes of `like`."""
    parts = tf.split(flat, [t.shape.num_elements() for t in like])
    return [tf.reshape(part, t.shape) for part, t in zip(parts, like, strict=True)]
