"""Train in many processes, one device each, by Horovod's raw collectives. The only file that knows Horovod.

Horovod's Keras wrappers are not used: under Keras 3 its DistributedOptimizer silently averages nothing
(tests/parallel/test_parity.py shows it). Gradients are summed in buckets, from the last layer to the
first, so that the reduction runs while the backward pass still computes the earlier layers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.config import Config
from tl_dist.parallel import gpus
from tl_dist.parallel.replicas import BROADCAST_BYTES, OneOfMany, buckets, flatten, num_bytes, split_like
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous import rank_layout
from tl_dist.rendezvous.barrier import await_peers

MIB = 2**20
HOST = "CPU:0"
"""device on which everything but gradients is exchanged, even with GPUs: this path is the one that CPU tests cover"""
_CARRIERS = ("nccl", "gloo", "mpi_", "horovod")
"""the most specific first: Horovod's own line often only says that something failed"""

_OF_THE_GRAPH = ('File "', "Detected at node")
"""prefixes of lines that tell where an operation was created, not why it failed"""


class Horovod(OneOfMany):
    """One replica per process; its device is the GPU of its local rank, or the CPU."""

    def __init__(self, config: Config) -> None:
        # Under a launcher of the user's own nobody reads heartbeats: Horovod's stall inspector ends a job that hangs
        # for longer than the longest phase may take. Our own launchers have switched it off.
        longest_s = max(config.safety.hang_s, config.safety.alone_s, config.safety.first_step_s)
        self._hvd = _import_horovod()
        self.wire = config.runtime.wire
        on_gpus = bool(tf.config.list_physical_devices("GPU") and self._hvd.nccl_built())
        expected = rank_layout.expected_world_size(os.environ)
        choice = settings(gpus=on_gpus, workers=expected or 1, stall_s=longest_s)
        self.bucket_bytes, self.last_bytes = choice.bucket_bytes, choice.last_bytes
        for key, value in choice.environment.items():
            os.environ.setdefault(key, value)
        # hvd.init() aborts the process when a peer is late: wait for all first.
        await_peers(os.environ, timeout_s=config.safety.first_step_s)
        self._hvd.init()
        self.rank: int = self._hvd.rank()
        self.world_size: int = self._hvd.size()
        self.num_replicas = self.world_size
        if expected is not None and expected != self.world_size:
            raise Refusal(
                f"rank {self.rank}: Horovod sees {self.world_size} workers, but the launcher started {expected}.",
                fix="start with 'tl-dist submit' or 'srun --mpi=pmix', so that the workers find each other.",
                code=ExitCode.UNSAFE,
            )
        gpus.take_own(self._hvd.local_rank(), self._hvd.local_size(), os.environ)

    def _sum(self, value: Any, name: str, *, on_cpu: bool = False) -> Any:
        with tf.device(HOST) if on_cpu else nullcontext():
            return self._all_reduce([tf.convert_to_tensor(value)], name)[0]

    def _all_reduce(self, tensors: Sequence[Any], name: str) -> list[Any]:
        return list(self._hvd.grouped_allreduce(tensors, op=self._hvd.Sum, name=name))

    # Horovod 0.28.1 does not support bfloat16, but it can send the same bits as uint16.

    def _all_gather_bf16(self, flat: Any, name: str) -> Any:
        return tf.bitcast(self._hvd.allgather(tf.bitcast(flat, tf.uint16), name=name), tf.bfloat16)

    def _all_to_all_bf16(self, flat: Any, name: str) -> Any:
        return tf.bitcast(self._hvd.alltoall(tf.bitcast(flat, tf.uint16), name=name), tf.bfloat16)

    def gather(self, text: bytes) -> list[bytes]:
        """Return every rank's bytes, by one gather of bytes and one of sizes on the CPU."""
        with tf.device(HOST):
            data = tf.constant(np.frombuffer(text, np.uint8))
            everything = self._hvd.allgather(data, name="gather").numpy().tobytes()
            sizes = self._hvd.allgather(tf.constant([len(text)], tf.int64), name="gather_sizes").numpy()
        ends = np.cumsum(sizes)
        return [everything[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def broadcast(self, variables: Sequence[Any]) -> None:
        """Assign rank 0's values, in buckets of one data type."""
        by_dtype: dict[Any, list[Any]] = {}
        for variable in variables:
            by_dtype.setdefault(tf.as_dtype(variable.dtype), []).append(variable)
        for dtype, alike in by_dtype.items():
            for number, bucket in enumerate(buckets([num_bytes(v) for v in alike], BROADCAST_BYTES)):
                self._broadcast_as_one([alike[k] for k in bucket], f"variables_{dtype.name}_{number}")

    def _broadcast_as_one(self, variables: Sequence[Any], name: str) -> None:
        """Broadcast variables of one type in one exchange: several hundred one by one took seconds at every start."""
        with tf.device(HOST):
            flat = flatten([v.read_value() for v in variables])
            if flat.dtype == tf.bfloat16:  # not supported, see above
                sent = self._hvd.broadcast(tf.bitcast(flat, tf.uint16), root_rank=0, name=name)
                received = tf.bitcast(sent, tf.bfloat16)
            else:
                received = self._hvd.broadcast(flat, root_rank=0, name=name)
        for variable, values in zip(variables, split_like(received, variables), strict=True):
            variable.assign(values)

    @contextmanager
    def naming_lost_peers(self) -> Iterator[None]:
        """Refuse (76) a lost peer, from the messages of Horovod, Gloo, MPI or NCCL."""
        try:
            yield
        except (tf.errors.UnknownError, tf.errors.InternalError, tf.errors.AbortedError) as error:
            refusal = refusal_of(self.rank, str(error))
            if refusal is None:
                raise
            raise refusal from error


def _import_horovod() -> Any:
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        raise Refusal(
            f"Horovod cannot be imported ({_first_line(error)}).",
            fix="run ./launch/install_horovod, or use strategy=mirrored.",
            code=ExitCode.USAGE,
        ) from error
    return hvd


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@dataclass(frozen=True)
class Settings:
    """The variables that Horovod reads when it starts, and the sizes of gradient buckets."""

    environment: Mapping[str, str]
    """defaults: a variable that is already set takes precedence"""
    bucket_bytes: int
    """gradients are summed in buckets of about this size, from the last layer to the first"""
    last_bytes: int
    """the first layers' gradients, computed last, get a bucket of at most this size; 0: no such bucket"""


def settings(*, gpus: bool, workers: int, stall_s: float) -> Settings:
    """Return the settings for a run with `workers`; after `stall_s` Horovod's inspector ends a job that hangs."""
    return Settings(
        {
            # Milliseconds between checks of the queue. On CPUs each check takes time from a busy core, and waiting
            # costs little, since the sum overlaps with other work. With a GPU cores are idle, a step may take 10 ms,
            # and each `sync` batch norm waits for a check. Over many hosts a check is itself a round of messages.
            "HOROVOD_CYCLE_TIME": ("0.5" if workers <= 8 else "1") if gpus else "5",
            # Each bucket is reduced by itself: if fusion depended on timing, so would the bits of the sums.
            "HOROVOD_DISABLE_GROUP_FUSION": "1",
            # MPI waits for its peers in a busy loop; unless it yields, that costs a fifth of a step.
            **({} if gpus else {"OMPI_MCA_mpi_yield_when_idle": "1"}),
            # Otherwise the thread that starts reductions waits for the end of each on the GPU.
            **({"HOROVOD_ENABLE_ASYNC_COMPLETION": "1"} if gpus else {}),
            rank_layout.GLOO_TIMEOUT_VARIABLE: str(rank_layout.gloo_timeout_s(workers)),
            "HOROVOD_STALL_CHECK_TIME_SECONDS": "30",
            "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": f"{stall_s:.0f}",
        },
        # NCCL needs some 30 MiB to saturate a node's links; the last bucket's reduction overlaps with nothing.
        bucket_bytes=(32 if gpus else 8) * MIB,
        last_bytes=2 * MIB if gpus else 0,
    )


def refusal_of(rank: int, message: str) -> Refusal | None:
    """Return the refusal for a failed collective; None if `message` is of none.

    A lost peer is PEER_LOST, and a restart helps; NCCL's "invalid usage" would be the same each time.
    """
    line = _telling_line(message)
    if line is None:
        return None
    if re.search(r"invalid usage|duplicate gpu", message, re.IGNORECASE):
        return Refusal(
            f"rank {rank}: NCCL cannot be used like this ({line}).",
            fix="give each worker a GPU of its own: no more workers on a host than it has GPUs.",
            code=ExitCode.USAGE,
        )
    return Refusal(
        f"rank {rank}: a collective failed, since another worker {_fate(message)} ({line}).",
        fix="see the log of the first failing rank; the same command resumes from the last checkpoint.",
        code=ExitCode.PEER_LOST,
    )


def _telling_line(message: str) -> str | None:
    """Return the line in which Horovod or its transport gives the reason; None if no line names one."""
    lines = [line.strip() for line in message.splitlines()]
    lines = [line for line in lines if not line.startswith(_OF_THE_GRAPH)]
    for carrier in _CARRIERS:
        for line in lines:
            if carrier in line.lower():
                return line[:200]
    return None


def _fate(message: str) -> str:
    """Tell what happened to the peer: if its connection has closed, its process has ended."""
    if re.search(r"timed out|timeout", message, re.IGNORECASE):
        return "stalled or cannot be reached"
    if re.search(r"connection (closed|reset)|broken pipe|connection refused", message, re.IGNORECASE):
        return "died"
    return "died or stalled"
