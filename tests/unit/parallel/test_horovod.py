"""Without Horovod: its settings, buckets, the device of its exchanges, and the report of a lost peer are right."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from tl_dist.config import Config, DataConfig, ModelConfig, OptimizerConfig, SafetyConfig
from tl_dist.launcher.classify_exits import RESTARTABLE
from tl_dist.launcher.command import worker_environment
from tl_dist.parallel import horovod
from tl_dist.parallel.horovod import MIB, Horovod, settings
from tl_dist.parallel.replicas import buckets
from tl_dist.refusal import ExitCode, Refusal

SHUTDOWN = "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"
CONFIG = Config(
    name="x",
    steps=1,
    strategy="horovod",
    workers=2,
    data=DataConfig(name="digits"),
    model=ModelConfig(backbone="tiny"),
    optimizer=OptimizerConfig(name="sgd", learning_rate=0.1),
    safety=SafetyConfig(hang_s=100, alone_s=5000),
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables of this process, which a worker would have."""
    fake = SimpleNamespace(
        init=lambda: None,
        rank=lambda: 0,
        size=lambda: 2,
        local_rank=lambda: 0,
        local_size=lambda: 2,
        nccl_built=lambda: 0,
    )
    monkeypatch.setattr(horovod, "_import_horovod", lambda: fake)
    variables: dict[str, str] = {}
    monkeypatch.setattr(horovod, "os", SimpleNamespace(environ=variables))
    return variables


def test_under_our_launcher_the_inspector_ends_nothing(environment: dict[str, str]) -> None:
    environment |= worker_environment(CONFIG, {}, processes=2, cores=2)
    horovod.Horovod(CONFIG)
    assert environment[SHUTDOWN] == "0"
    assert environment["HOROVOD_STALL_CHECK_TIME_SECONDS"] == "25"  # it still warns


def test_under_a_launcher_of_ones_own_it_has_the_patience_of_the_longest_phase(
    environment: dict[str, str],
) -> None:
    horovod.Horovod(CONFIG)
    assert environment[SHUTDOWN] == "5000"


@pytest.mark.parametrize(
    ("said", "fate"),
    [
        ("Horovod: gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2311", "died ("),
        ("Horovod: Read error [127.0.0.1]:2311: Connection reset by peer", "died ("),
        (
            "Horovod: gloo: Timed out waiting 30000ms for recv operation to complete",
            "stalled or cannot be reached (",
        ),
        (
            "Horovod has been shut down. This was caused by an exception on one of the ranks",
            "died or stalled (",
        ),
    ],
)
def test_a_stall_is_not_called_a_death(environment: dict[str, str], said: str, fate: str) -> None:
    with pytest.raises(Refusal) as refused, horovod.Horovod(CONFIG).naming_lost_peers():
        raise tf.errors.UnknownError(None, None, said)
    assert f"since another worker {fate}" in str(refused.value)
    assert refused.value.code == ExitCode.PEER_LOST


class OnTheHost:
    """Horovod of two workers that send the same; refuses an exchange that TensorFlow would place as it likes."""

    Sum = "sum"

    def __init__(self) -> None:
        self.exchanged: list[str] = []

    def _taken(self, name: str) -> None:
        device = context.context().device_name  # where this thread's operations go; None: to a GPU where there is one
        assert device is not None and device.endswith("CPU:0"), f"{name} would be exchanged by NCCL"
        self.exchanged.append(name)

    def grouped_allreduce(self, tensors: list[Any], op: str, name: str) -> list[Any]:
        self._taken(name)
        return [tensor * 2 for tensor in tensors]

    def allgather(self, tensor: Any, name: str) -> Any:
        self._taken(name)
        return tf.concat([tensor, tensor], axis=0)


def test_all_but_gradients_is_exchanged_by_the_cpu(environment: dict[str, str]) -> None:
    """The way that tests on CPUs prove: NCCL has never gathered 0 bytes here, nor added up float64."""
    parallel, fake = horovod.Horovod(CONFIG), OnTheHost()
    parallel._hvd = fake
    assert parallel.total({"a": 1.5, "b": np.ones(3)})["b"].tolist() == [2, 2, 2]
    assert parallel.gather(b"") == [b"", b""] and parallel.gather(b"ab") == [b"ab", b"ab"]
    parallel.broadcast([tf.Variable([1.0, 2.0]), tf.Variable([3])])
    assert len(fake.exchanged) == 1 + 2 + 2 + 1


IN_A_GRAPH = """Graph execution error:

Detected at node HorovodGroupedAllreduce defined at (most recent call last):
  File "/home/x/tl_dist/parallel/horovod.py", line 90, in _all_reduce

{}
[[{{{{node HorovodGroupedAllreduce}}}}]] [Op:__inference_run_steps_41]"""


def fail(said: str) -> None:
    """Fail as a collective of rank 3 does."""
    parallel = Horovod.__new__(Horovod)
    parallel.rank = 3
    with parallel.naming_lost_peers():
        raise tf.errors.UnknownError(None, None, said)


DUPLICATE = "ncclCommInitRank failed: invalid usage (run with NCCL_DEBUG=WARN for details)"


@pytest.mark.parametrize(
    ("said", "quoted", "fate"),
    [
        (DUPLICATE, DUPLICATE, None),
        (IN_A_GRAPH.format(DUPLICATE), DUPLICATE, None),
        (
            IN_A_GRAPH.format("ncclGroupEnd failed: remote process exited or there was a network error"),
            "ncclGroupEnd failed: remote process exited or there was a network error",
            "died or stalled",
        ),
        (
            IN_A_GRAPH.format("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:2311"),
            "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:2311",
            "died",
        ),
        (IN_A_GRAPH.format("Horovod has been shut down."), "Horovod has been shut down.", "died or stalled"),
        ("MPI_Allreduce failed, see MPI output for details.", "MPI_Allreduce failed", "died or stalled"),
    ],
)
def test_the_line_with_the_reason_is_quoted(said: str, quoted: str, fate: str | None) -> None:
    with pytest.raises(Refusal) as refused:
        fail(said)
    found = refused.value
    assert found.what.startswith("rank 3: ") and f"({quoted}" in found.what
    if fate is not None:
        assert f"another worker {fate} (" in found.what
    assert (found.code in RESTARTABLE) == (fate is not None)


def test_an_error_of_something_else_is_not_a_lost_peer() -> None:
    """Though every step has passed through the file that calls Horovod."""
    other = IN_A_GRAPH.format("Incompatible shapes: [3] vs. [4]").replace("HorovodGroupedAllreduce", "Add")
    assert "horovod.py" in other
    with pytest.raises(tf.errors.UnknownError):
        fail(other)


@pytest.mark.parametrize(
    ("gpus", "workers", "cycle_ms"),
    [
        (False, 1, "5"),
        (False, 2, "5"),
        (False, 64, "5"),
        (True, 1, "0.5"),
        (True, 8, "0.5"),
        (True, 9, "1"),
        (True, 1024, "1"),
    ],
)
def test_settings(gpus: bool, workers: int, cycle_ms: str) -> None:
    only = {"HOROVOD_ENABLE_ASYNC_COMPLETION": "1"} if gpus else {"OMPI_MCA_mpi_yield_when_idle": "1"}
    assert settings(gpus=gpus, workers=workers, stall_s=1200.4) == {
        "HOROVOD_CYCLE_TIME": cycle_ms,
        "HOROVOD_DISABLE_GROUP_FUSION": "1",
        **only,
        "HOROVOD_GLOO_TIMEOUT_SECONDS": str(30 + workers // 16 * 4),
        "HOROVOD_STALL_CHECK_TIME_SECONDS": "30",
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "1200",
    }


@pytest.mark.parametrize(
    ("sizes", "limit", "last", "expected"),
    [
        ([], 10, 3, []),
        ([1, 2, 3, 4], 5, 0, [[3, 2], [1, 0]]),
        ([20, 1, 1], 5, 0, [[2, 1, 0]]),  # filled to the limit or past it
        ([1, 1, 1, 9, 9], 10, 2, [[4, 3], [2], [1, 0]]),
        ([1, 1, 9, 9], 10, 2, [[3, 2], [1, 0]]),
        ([1, 1, 4, 4], 100, 2, [[3, 2], [1, 0]]),
        ([3, 9], 100, 2, [[1, 0]]),  # the first layer alone is too large to go last by itself
        ([1, 1], 100, 2, [[1, 0]]),
        ([0, 5, 0], 100, 0, [[2, 1, 0]]),  # an empty tensor is no bucket
    ],
)
def test_buckets(sizes: list[int], limit: int, last: int, expected: list[list[int]]) -> None:
    assert buckets(sizes, limit, last) == expected


@pytest.mark.parametrize("last", [0, 2 * MIB])
def test_each_tensor_is_in_one_bucket_in_the_order_of_the_backward_pass(last: int) -> None:
    sizes = [(k * 7919) % (3 * MIB) for k in range(161)]
    flat = [k for bucket in buckets(sizes, 32 * MIB, last) for k in bucket]
    assert flat == list(reversed(range(161)))
    assert all(a > b for a, b in pairwise(flat))
