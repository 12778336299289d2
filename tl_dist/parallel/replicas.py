"""Share code between strategies: a process with one replica, a process without peers, one of several processes."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from tl_dist.refusal import ExitCode, Refusal

T = TypeVar("T")

BUCKET_BYTES = 8 * 2**20
MAX_GATHERED = 3  # with no more workers, gathering bfloat16 sends fewer bytes than reducing float32
# A bucket is in memory twice during a broadcast, so a large state is sent in parts.
BROADCAST_BYTES = 64 * 2**20
_SMALLEST_GATHER = 256  # bytes; sizes are powers of 2: TensorFlow's collectives never forget a shape


class OneReplica:
    """A process that computes on one device: the GPU that it has taken, or the CPU."""

    rank: int

    def scope(self) -> AbstractContextManager[Any]:
        """Enter no context: variables are plain ones."""
        return nullcontext()

    def feed(self, batches: Any) -> Iterator[Any]:
        """Iterate over `batches`, copied ahead to the GPU if there is one."""
        return prefetch_to(batches, gpu_of_process())

    def run(self, fn: Callable[..., T], batch: Any, step: Any) -> T:
        """Call `fn` once, with the whole batch."""
        return fn(batch, step)

    def replica(self) -> Any:
        """Return the rank, since each process has one replica."""
        return self.rank


class OneProcess:
    """A process without peers: sums over processes are its own values."""

    rank: int = 0
    world_size: int = 1

    def total(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values as float64 arrays."""
        return {key: np.asarray(value, np.float64) for key, value in values.items()}

    def gather(self, text: bytes) -> list[bytes]:
        """Return this process's bytes alone."""
        return [text]

    def broadcast(self, variables: Sequence[Any]) -> None:
        """Do nothing: a variable has one copy, or copies that are assigned together."""

    def naming_lost_peers(self) -> AbstractContextManager[None]:
        """Do nothing: there are no peers."""
        return nullcontext()


class OneOfMany(OneReplica):
    """One of several processes with a replica each; a strategy implements the exchange of tensors."""

    world_size: int
    num_replicas: int
    wire: str = "auto"
    """number format in which gradients are sent, by the config"""
    reduced_bytes: int = 0  # of gradients, by each step on this worker
    bucket_bytes: int = BUCKET_BYTES
    last_bytes: int = 0

    def _sum(self, value: Any, name: str, *, on_cpu: bool = False) -> Any:
        """Sum over workers; the same bits on every worker."""
        raise NotImplementedError

    def _all_reduce(self, tensors: Sequence[Any], name: str) -> list[Any]:
        """Sum each tensor over workers, in its own number format: float32 or float16."""
        raise NotImplementedError

    def _all_gather(self, value: Any, name: str, *, on_cpu: bool = False) -> Any:
        """Return the rows of all workers, bit for bit, in an order of workers that is the same in every exchange."""
        raise NotImplementedError

    def _all_to_all(self, rows: Any, name: str) -> Any:
        """Send each worker its row of `rows`; return the rows received, bit for bit, in the order of `_all_gather`."""
        raise NotImplementedError

    def reduce_gradients(self, grads: Sequence[Any]) -> list[Any]:
        """Sum gradients over workers in buckets; return float32, equal on every worker."""
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

    def _gather_and_sum(self, tensors: Sequence[Any], name: str) -> list[Any]:
        """Sum bfloat16 tensors in float32, in one order: the same bits on all workers.

        Each worker sends its tensors once to every other: for up to three workers that is less than a ring all-reduce
        of float32, in which every worker sends nearly the whole twice.
        """
        return split_like(self._sum_of_rows(self._gather_bits(flatten(tensors), name)), tensors)

    def _exchange_and_sum(self, tensors: Sequence[Any], name: str) -> list[Any]:
        """Sum bfloat16 tensors like a ring, at half its bytes: each worker sums one part in float32, and rounds it."""
        flat = flatten(tensors)
        size = int(flat.shape[0])
        flat = tf.pad(flat, [[0, -size % self.world_size]])
        parts = tf.reshape(tf.bitcast(flat, tf.float16), [self.world_size, -1])
        mine = self._sum_of_rows(self._all_to_all(parts, f"{name}_parts"))
        sums = tf.reshape(self._gather_bits(tf.cast(mine, tf.bfloat16), name), flat.shape)
        sums = tf.bitcast(sums, tf.bfloat16)
        return split_like(tf.cast(sums[:size], tf.float32), tensors)

    def total_in_step(self, value: Any, name: str) -> Any:
        """Sum over workers inside a step; the gradient is summed as well."""
        if self.world_size == 1:
            return value

        @tf.custom_gradient
        def total(local: Any) -> tuple[Any, Callable[[Any], Any]]:
            return self._sum(local, name), lambda upstream: self._sum(upstream, f"{name}_gradient")

        return total(value)

    def total(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Sum each value over workers in float64, in one exchange on the CPU."""
        arrays = {key: np.asarray(value, np.float64) for key, value in values.items()}
        if self.world_size == 1:
            return arrays
        flat = np.concatenate([array.ravel() for array in arrays.values()])
        sums = self._sum(flat, "total", on_cpu=True).numpy()
        parts = np.split(sums, np.cumsum([array.size for array in arrays.values()])[:-1])
        return {key: part.reshape(array.shape) for (key, array), part in zip(arrays.items(), parts, strict=True)}

    def gather(self, text: bytes) -> list[bytes]:
        """Return every rank's bytes, sent in one padded row each, on the CPU."""
        if self.world_size == 1:
            return [text]
        own = np.array([[self.rank, len(text)]], np.int64)
        heads = self._all_gather(own, "gather_sizes", on_cpu=True).numpy()
        room = max(_SMALLEST_GATHER, 1 << (int(heads[:, 1].max()) - 1).bit_length())
        words = np.frombuffer(text.ljust(room, b"\0"), np.int32)[np.newaxis]
        rows = self._all_gather(words, "gather", on_cpu=True).numpy()
        return [rows[k].tobytes()[: heads[k, 1]] for k in np.argsort(heads[:, 0], kind="stable")]

    def broadcast(self, variables: Sequence[Any]) -> None:
        """Assign rank 0's values, in few exchanges: several hundred one by one took seconds at every start."""
        if self.world_size == 1:
            return
        for number, bucket in enumerate(buckets([num_bytes(v) for v in variables], BROADCAST_BYTES)):
            self._broadcast_as_one([variables[k] for k in bucket], f"variables_{number}")

    def _broadcast_as_one(self, variables: Sequence[Any], name: str) -> None:
        """Broadcast by a sum of bit patterns, to which every other rank contributes zeros."""
        sizes = [num_bytes(v) for v in variables]
        words = np.zeros(-(-sum(sizes) // 4), np.int32)
        if self.rank == 0:
            content = b"".join(np.ascontiguousarray(v.numpy()).tobytes() for v in variables)
            words = np.frombuffer(content.ljust(words.nbytes, b"\0"), np.int32)
        received = self._sum(words, name, on_cpu=True).numpy().tobytes() if len(words) else b""
        for variable, end, size in zip(variables, np.cumsum(sizes), sizes, strict=True):
            dtype = tf.as_dtype(variable.dtype).as_numpy_dtype
            variable.assign(np.frombuffer(received[end - size : end], dtype).reshape(variable.shape))

    def _lost_peer(self, message: str, line: str) -> Refusal:
        """Return the refusal (76) for a lost peer; `message` is the framework's, `line` the one with the reason."""
        fate = "died or stalled"
        if re.search(r"connection (closed|reset|refused)|socket closed|broken pipe", message, re.IGNORECASE):
            fate = "died"  # the kernel closes the connections of a process that has ended
        elif re.search(r"heartbeat|deadline exceeded|timed out|timeout", message, re.IGNORECASE):
            fate = "stalled or cannot be reached"
        what = f"rank {self.rank}: a collective failed, since another worker {fate} ({line})."
        fix = "see the log of the first failing rank; the same command resumes from the last checkpoint."
        return Refusal(what, fix=fix, code=ExitCode.PEER_LOST)

    def _gather_bits(self, flat: Any, name: str) -> Any:
        """Return a row of bfloat16 numbers of each worker, as float16: no strategy's operations support bfloat16."""
        return self._all_gather(tf.bitcast(flat, tf.float16)[tf.newaxis], name)

    def _sum_of_rows(self, received: Any) -> Any:
        """Sum bfloat16 rows, one from each worker, in float32, in the order received."""
        rows = tf.unstack(tf.bitcast(tf.reshape(received, [self.world_size, -1]), tf.bfloat16))
        return functools.reduce(tf.add, [tf.cast(row, tf.float32) for row in rows])


def flatten(tensors: Sequence[Any]) -> Any:
    """Concatenate the values of all tensors into one vector."""
    return tf.concat([tf.reshape(t, [-1]) for t in tensors], axis=0)


def split_like(flat: Any, like: Sequence[Any]) -> list[Any]:
    """Split `flat` into tensors of the shapes of `like`."""
    parts = tf.split(flat, [t.shape.num_elements() for t in like])
    return [tf.reshape(part, t.shape) for part, t in zip(parts, like, strict=True)]


def gpu_of_process() -> str | None:
    """Return the GPU of a process with one replica, the first that TensorFlow may see; None without one."""
    gpus = tf.config.list_logical_devices("GPU")
    return gpus[0].name if gpus else None


def prefetch_to(batches: Any, device: str | None) -> Iterator[Any]:
    """Iterate over `batches`, copied to `device` two batches ahead; with None, leave them where tf.data puts them.

    If the step itself copied its batch, the copy would wait for the previous step, and the step for the copy. An error
    of the pipeline is the same either way.
    """
    if device is None:
        return iter(batches)
    copied = batches.apply(tf.data.experimental.copy_to_device(device))
    with tf.device(device):
        return iter(copied.prefetch(2))


def buckets(sizes: Sequence[int], limit: int = BUCKET_BYTES, last: int = 0) -> list[list[int]]:
    """Group tensor indices, from last to first, into buckets of about `limit` bytes; the same on every rank.

    The first tensors, as many as fit into `last` bytes, get a bucket of their own, the last one.
    """
    head, head_bytes = 0, 0
    while last and head < len(sizes) and head_bytes + sizes[head] <= last:
        head_bytes += sizes[head]
        head += 1
    groups: list[list[int]] = []
    filled = limit
    for k in reversed(range(len(sizes))):
        if filled >= limit or k == head - 1:
            groups.append([])
            filled = 0
        groups[-1].append(k)
        filled += sizes[k]
    return groups


def num_bytes(tensor: Any) -> int:
    """Return the size of a tensor of known shape."""
    return int(tensor.shape.num_elements()) * int(tensor.dtype.size)
