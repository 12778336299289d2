"""Train in many processes, one device each, by TensorFlow's own collectives. Needs no compiler and no other package.

`tf.distribute`'s strategy is not used: it wraps these operations for models built its own way, and outside of its
`run` it silently returns the sum of one worker only. Here the variables are plain ones, and every sum is an operation
that waits for all workers: NCCL on GPUs (written, not yet run on one), else a ring over gRPC.

An operation finds its counterparts by a number, its instance key, which identifies a purpose, a type and a shape. Each
new shape needs a new key, and TensorFlow never forgets a key.
"""

import os
import re
import signal
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

# Private, but the only way to TensorFlow's server and its time-outs; the minor version is fixed in pyproject.toml.
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.eager import context

from tl_dist.config import Config
from tl_dist.parallel import gpus
from tl_dist.parallel.replicas import OneOfMany, flatten, split_like
from tl_dist.refusal import ExitCode, Refusal, telling_line
from tl_dist.rendezvous import port_guard, rank_layout
from tl_dist.rendezvous.barrier import TOKEN_VARIABLE, await_peers, messages_of_all

_ON_CPUS, _ON_GPUS = 1, 2  # group keys; TensorFlow binds each to its devices

# Errors that only a lost peer causes; then errors that other faults cause as well, whose message must name a peer.
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)
_MAY_BE_LOST = (
    *(tf.errors.InternalError, tf.errors.UnknownError, tf.errors.CancelledError),
    tf.errors.FailedPreconditionError,
)
_OF_PEERS = re.compile(r"collective|coordination|/job:worker|\bpeer\b|RecvBuf|NCCL", re.IGNORECASE)


class Collective(OneOfMany):
    """One replica per process; its device is the GPU of its local rank, or the CPU."""

    def __init__(self, config: Config) -> None:
        place = {"RANK": 0, "SIZE": 1, "LOCAL_RANK": 0, "LOCAL_SIZE": 1}
        if "HOROVOD_GLOO_RENDEZVOUS_ADDR" in os.environ:
            place = {name: rank_layout.integer(os.environ, f"HOROVOD_{name}") for name in place}
        self.rank, self.world_size = place["RANK"], place["SIZE"]
        expected = rank_layout.expected_world_size(os.environ)
        if expected not in (None, self.world_size):
            raise Refusal(
                f"rank {rank_layout.rank_in(os.environ)}: its launcher started {expected} workers, which cannot meet.",
                fix="start with 'tl-dist train' or 'tl-dist submit', or use strategy=horovod.",
                code=ExitCode.UNSAFE,
            )
        self.num_replicas = self.world_size
        self.wire = config.runtime.wire
        safety = config.safety
        # TensorFlow's own heartbeats end the wait for a process that is frozen or cut off. The supervisor detects one
        # whose main thread hangs; without a supervisor, a collective times out after the longest phase.
        self._patience_s = max(safety.hang_s, safety.alone_s, safety.first_step_s)
        self._keys: dict[int, Hashable] = {}
        self._on_gpu = bool(gpus.take_own(place["LOCAL_RANK"], place["LOCAL_SIZE"], os.environ))
        if self.world_size > 1:
            self._connect(safety.first_step_s)

    def _connect(self, timeout_s: float) -> None:
        """Wait for all workers, and start TensorFlow's server behind its port guard."""
        own = port_guard.own_address(os.environ)
        guard = port_guard.open_port_guard(os.environ, own)
        port = guard.port if guard else port_guard.free_port()
        await_peers(os.environ, timeout_s=timeout_s, message=f"{own}:{port}")
        endpoints = messages_of_all(os.environ)
        workers = [port_guard.parsed(text) for text in endpoints]
        port_guard.refuse_public([host for host, _ in workers], os.environ)
        if guard:
            endpoints = guard.open_to(workers, os.environ.get(TOKEN_VARIABLE, ""))
        os.environ["TF_GRPC_REUSE_PORT"] = "true" if guard else "false"
        with self.naming_lost_peers():
            _start_server(self.rank, endpoints, timeout_s)
            if guard:
                guard.check()
            task = f"/job:worker/replica:0/task:{self.rank}/device:"
            self._use({True: f"{task}CPU:0", False: f"{task}{'GPU' if self._on_gpu else 'CPU'}:0"})
        self._guard = guard

    def _use(self, devices: Mapping[bool, str]) -> None:
        """Exchange on `devices[False]` gradients and what a step sums, on `devices[True]` all else: always a CPU.

        A token on each device keeps its operations in program order. TensorFlow places an operation where its token
        is, whatever `tf.device` says: with one token on the CPU it would sum the gradients of GPUs there.
        """
        self._devices, self._tokens = devices, {}
        for device in set(devices.values()):
            with tf.device(device):
                self._tokens[device] = tf.Variable(0.0, trainable=False)

    def _sum(self, value: Any, name: str, *, on_cpu: bool = False) -> Any:
        """Sum over workers; the same bits on all: a ring sums each part in one order, and sends the sum around."""
        return self._collective(tf.raw_ops.CollectiveReduceV2, value, name, on_cpu, merge_op="Add", final_op="Id")

    def _all_gather(self, value: Any, name: str, *, on_cpu: bool = False) -> Any:
        return self._collective(tf.raw_ops.CollectiveGatherV2, value, name, on_cpu)

    def _all_to_all(self, rows: Any, name: str) -> Any:
        return self._collective(tf.raw_ops.CollectiveAllToAllV2, rows, name, False)

    def _all_reduce(self, tensors: Sequence[Any], name: str) -> list[Any]:
        return split_like(self._sum(flatten(tensors), name), tensors)

    def _collective(self, operation: Any, value: Any, name: str, on_cpu: bool, **more: Any) -> Any:
        device = self._devices[on_cpu]
        group = _ON_CPUS if device == self._devices[True] else _ON_GPUS
        with tf.device(device):
            value = tf.identity(value)  # an argument of a traced function is on no device
            return operation(
                input=value,
                group_size=self.world_size,
                group_key=group,
                instance_key=self._instance_key(operation.__name__, name, group, value.dtype.name, tuple(value.shape)),
                ordering_token=[self._tokens[device].handle],
                communication_hint="ring" if group == _ON_CPUS else "nccl",
                timeout_seconds=self._patience_s,
                **more,
            )

    def _instance_key(self, *what: Hashable) -> int:
        """Return the key of an exchange: the same on every worker, whatever each has traced in which order."""
        number = zlib.crc32(repr(what).encode()) & 0x7FFFFFFF
        if self._keys.setdefault(number, what) != what:
            raise RuntimeError(f"{what} and {self._keys[number]} have the same instance key")
        return number

    @contextmanager
    def naming_lost_peers(self) -> Iterator[None]:
        """Refuse (76) a lost peer, from the types and messages of TensorFlow's errors."""
        try:
            yield
        except (*_LOST, *_MAY_BE_LOST) as error:
            if not isinstance(error, _LOST) and not _OF_PEERS.search(str(error)):
                raise
            raise self._lost_peer(str(error), telling_line(str(error))) from error


def _start_server(rank: int, endpoints: Sequence[str], timeout_s: float) -> None:
    """Start TensorFlow's server, by which workers exchange tensors and heartbeats; wait until all have started."""
    task = f"/job:worker/replica:0/task:{rank}"
    leader = "/job:worker/replica:0/task:0"
    quiet_s = rank_layout.gloo_timeout_s(len(endpoints), os.environ)
    here = context.context()
    on_term = signal.getsignal(signal.SIGTERM)
    here.configure_collective_ops(collective_leader=leader, scoped_allocator_enabled_ops=(), device_filters=(task,))
    here.configure_coordination_service(
        service_type="standalone",
        service_leader=leader,
        cluster_register_timeout_in_ms=int(1000 * timeout_s),
        heartbeat_timeout_in_ms=1000 * quiet_s,
        coordinated_jobs=[coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=len(endpoints))],
    )
    here.enable_collective_ops(
        tf.train.ServerDef(
            cluster=tf.train.ClusterSpec({"worker": list(endpoints)}).as_cluster_def(),
            default_session_config=here.config,
            job_name="worker",
            task_index=rank,
            protocol="grpc",
        )
    )
    here.ensure_initialized()
    # TensorFlow has replaced the handler by its preemption notifier, which nothing here listens to.
    signal.signal(signal.SIGTERM, on_term)
