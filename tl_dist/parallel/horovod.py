"""Train in many processes, one device each, by Horovod's raw collectives. The only file that knows Horovod.

Horovod's Keras wrappers are not used: under Keras 3 its DistributedOptimizer silently averages nothing
(tests/parallel/test_parity.py shows it). Gradients are summed in buckets, from the last layer to the
first, so that the reduction runs while the backward pass still computes the earlier layers.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import tensorflow as tf

from tl_dist.config import Config
from tl_dist.parallel import gpus
from tl_dist.parallel.replicas import OneOfMany
from tl_dist.refusal import ExitCode, Refusal, telling_line
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
        # NCCL needs some 30 MiB to saturate a node's links; the last bucket's reduction overlaps with nothing.
        self.bucket_bytes, self.last_bytes = (32 * MIB, 2 * MIB) if on_gpus else (8 * MIB, 0)
        for key, value in settings(gpus=on_gpus, workers=expected or 1, stall_s=longest_s).items():
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

    def _all_gather(self, value: Any, name: str, *, on_cpu: bool = False) -> Any:
        with tf.device(HOST) if on_cpu else nullcontext():
            return self._hvd.allgather(tf.convert_to_tensor(value), name=name)

    def _all_to_all(self, rows: Any, name: str) -> Any:
        return self._hvd.alltoall(rows, name=name)

    @contextmanager
    def naming_lost_peers(self) -> Iterator[None]:
        """Refuse (76) a lost peer, from the messages of Horovod, Gloo, MPI or NCCL."""
        try:
            yield
        except (tf.errors.UnknownError, tf.errors.InternalError, tf.errors.AbortedError) as error:
            line = _line_of_carrier(str(error))
            if line is None:
                raise
            if re.search(r"invalid usage|duplicate gpu", str(error), re.IGNORECASE):
                # Final, since a restart would only repeat it.
                what = f"rank {self.rank}: NCCL cannot be used like this ({line})."
                fix = "give each worker a GPU of its own: no more workers on a host than it has GPUs."
                raise Refusal(what, fix=fix, code=ExitCode.USAGE) from error
            raise self._lost_peer(str(error), line) from error


def _import_horovod() -> Any:
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        what = f"Horovod cannot be imported ({telling_line(str(error))})."
        fix = "run tl-dist install-horovod, or use strategy=mirrored."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE) from error
    return hvd


def settings(*, gpus: bool, workers: int, stall_s: float) -> dict[str, str]:
    """Return the variables that Horovod reads when it starts; its inspector ends a job that hangs for `stall_s`."""
    return {
        # Milliseconds between checks of the queue. On CPUs each check takes time from a busy core, and waiting
        # costs little, since the sum overlaps with other work. With a GPU cores are idle, a step may take 10 ms,
        # and each `sync` batch norm waits for a check. Over many hosts a check is itself a round of messages.
        "HOROVOD_CYCLE_TIME": ("0.5" if workers <= 8 else "1") if gpus else "5",
        # Each bucket is reduced by itself: if fusion depended on timing, so would the bits of the sums.
        "HOROVOD_DISABLE_GROUP_FUSION": "1",
        # MPI waits for its peers in a busy loop; unless it yields, that costs a fifth of a step. On GPUs, otherwise
        # the thread that starts reductions waits for the end of each.
        **({"HOROVOD_ENABLE_ASYNC_COMPLETION": "1"} if gpus else {"OMPI_MCA_mpi_yield_when_idle": "1"}),
        rank_layout.GLOO_TIMEOUT_VARIABLE: str(rank_layout.gloo_timeout_s(workers)),
        "HOROVOD_STALL_CHECK_TIME_SECONDS": "30",
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": f"{stall_s:.0f}",
    }


def _line_of_carrier(message: str) -> str | None:
    """Return the line in which Horovod or its transport gives the reason; None if no line names one."""
    lines = [line.strip() for line in message.splitlines()]
    lines = [line for line in lines if not line.startswith(_OF_THE_GRAPH)]
    return next((line[:200] for name in _CARRIERS for line in lines if name in line.lower()), None)
