"""Many processes, one device each: Horovod's raw collectives. The only file that knows Horovod.

Horovod's Keras wrappers are not used: under Keras 3 its DistributedOptimizer averages nothing and says nothing
(tests/parallel/test_parity.py shows it). Gradients are summed in buckets, from the last layer to the
first, so that the reduction runs while the backward pass still computes the earlier layers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.config import Config
from tl_dist.parallel import failures, gpus
from tl_dist.parallel.buckets import buckets, num_bytes
from tl_dist.parallel.horovod_settings import settings
from tl_dist.parallel.replicas import BROADCAST_BYTES, OneOfMany, joined, split_like
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous import rank_layout
from tl_dist.rendezvous.barrier import await_peers

HOST = "CPU:0"
"""Where everything but gradients is exchanged, on machines with GPUs too: the way that tests on CPUs prove."""


class Horovod(OneOfMany):
    """One replica per process; its device is the GPU of its local rank, or the CPU."""

    def __init__(self, config: Config) -> None:
        # Under a launcher of the user's own nobody reads heartbeats: Horovod's inspector ends a job that hangs, with
        # the patience of the longest phase. Our own launchers have switched it off.
        longest_s = max(config.safety.hang_s, config.safety.alone_s, config.safety.first_step_s)
        self._hvd = _import_horovod()
        self.wire = config.runtime.wire
        on_gpus = bool(tf.config.list_physical_devices("GPU") and self._hvd.nccl_built())
        expected = rank_layout.expected_world_size(os.environ)
        chosen = settings(gpus=on_gpus, workers=expected or 1, stall_s=longest_s)
        self.bucket_bytes, self.last_bytes = chosen.bucket_bytes, chosen.last_bytes
        for key, value in chosen.environment.items():
            os.environ.setdefault(key, value)
        # hvd.init() aborts the process when a peer is late: meet first.
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

    # Horovod 0.28.1 reduces no bfloat16, but it moves any bits.

    def _gather_numbers(self, flat: Any, name: str) -> Any:
        return tf.bitcast(self._hvd.allgather(tf.bitcast(flat, tf.uint16), name=name), tf.bfloat16)

    def _exchange_numbers(self, flat: Any, name: str) -> Any:
        return tf.bitcast(self._hvd.alltoall(tf.bitcast(flat, tf.uint16), name=name), tf.bfloat16)

    def gather(self, text: bytes) -> list[bytes]:
        with tf.device(HOST):
            data = tf.constant(np.frombuffer(text, np.uint8))
            everything = self._hvd.allgather(data, name="gather").numpy().tobytes()
            sizes = self._hvd.allgather(tf.constant([len(text)], tf.int64), name="gather_sizes").numpy()
        ends = np.cumsum(sizes)
        return [everything[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def broadcast(self, variables: Sequence[Any]) -> None:
        by_dtype: dict[Any, list[Any]] = {}
        for variable in variables:
            by_dtype.setdefault(tf.as_dtype(variable.dtype), []).append(variable)
        for dtype, alike in by_dtype.items():
            for number, bucket in enumerate(buckets([num_bytes(v) for v in alike], BROADCAST_BYTES)):
                self._broadcast_as_one([alike[k] for k in bucket], f"variables_{dtype.name}_{number}")

    def _broadcast_as_one(self, variables: Sequence[Any], name: str) -> None:
        """Variables of one type in one exchange: several hundred one by one took seconds at every start."""
        with tf.device(HOST):
            flat = joined([v.read_value() for v in variables])
            if flat.dtype == tf.bfloat16:  # Horovod does not know it, but it moves any bits
                sent = self._hvd.broadcast(tf.bitcast(flat, tf.uint16), root_rank=0, name=name)
                received = tf.bitcast(sent, tf.bfloat16)
            else:
                received = self._hvd.broadcast(flat, root_rank=0, name=name)
        for variable, values in zip(variables, split_like(received, variables), strict=True):
            variable.assign(values)

    @contextmanager
    def naming_lost_peers(self) -> Iterator[None]:
        try:
            yield
        except (tf.errors.UnknownError, tf.errors.InternalError, tf.errors.AbortedError) as error:
            refusal = failures.refusal_of(self.rank, str(error))
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
