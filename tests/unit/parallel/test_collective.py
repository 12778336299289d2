"""TensorFlow's collectives in one process: a single worker needs none, and a lost peer is reported as such."""

from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from tl_dist.config import Config, DataConfig, ModelConfig, OptimizerConfig
from tl_dist.parallel import collective
from tl_dist.parallel.collective import Collective
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous import port_guard
from tl_dist.rendezvous.barrier import TOKEN_VARIABLE

CONFIG = Config(
    name="x",
    steps=1,
    strategy="collective",
    data=DataConfig(name="digits"),
    model=ModelConfig(backbone="tiny"),
    optimizer=OptimizerConfig(learning_rate=0.1),
)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Collective:
    for name in ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_GLOO_RENDEZVOUS_ADDR"):
        monkeypatch.delenv(name, raising=False)
    return Collective(CONFIG)


def test_one_worker_needs_nobody(alone: Collective) -> None:
    variable = tf.Variable([1.5], dtype=tf.bfloat16)
    alone.broadcast([variable])
    assert (alone.rank, alone.world_size, alone.num_replicas) == (0, 1, 1)
    assert alone.total({"x": [1, 2]})["x"].tolist() == [1.0, 2.0]
    assert alone.gather(b"me") == [b"me"]
    assert alone.total_in_step(variable, "x") is variable
    (reduced,) = alone.reduce_gradients([tf.constant([0.5], tf.bfloat16)])
    assert reduced.dtype == tf.float32 and reduced.numpy() == [0.5]


def test_workers_that_a_launcher_started_without_a_rendezvous_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else each would train alone, and all of them into one run."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    with pytest.raises(Refusal, match="rank 1: its launcher started 2 workers") as refused:
        Collective(CONFIG)
    assert refused.value.code == ExitCode.UNSAFE


class _StartedError(Exception):
    """TensorFlow's server would be open now."""


@pytest.mark.parametrize("asked", [False, True])
def test_over_a_public_address_no_server_is_started_unless_that_was_asked_for(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is its port guard opened: anyone who is let in could run code."""
    opened: list[object] = []
    guard = SimpleNamespace(port=4711, open_to=lambda *told: opened.append(told) or ["reached", "there"])
    said = []

    def start(rank: int, endpoints: list[str], timeout_s: float) -> None:
        assert endpoints == ["reached", "there"]
        raise _StartedError

    place = {"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_RANK": "0", "HOROVOD_LOCAL_SIZE": "1"}
    for name, value in {**place, "HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(port_guard.OPEN_PORT_VARIABLE, "1" if asked else "")
    monkeypatch.setattr(port_guard, "own_address", lambda env: "10.0.0.1")
    monkeypatch.setattr(port_guard, "open_port_guard", lambda env, own: guard)
    monkeypatch.setattr(collective, "await_peers", lambda env, *, timeout_s, message: said.append(message))
    monkeypatch.setattr(collective, "messages_of_all", lambda env: ["10.0.0.1:4711", "8.8.8.8:4711"])
    monkeypatch.setattr(collective, "_start_server", start)
    monkeypatch.setenv("TF_GRPC_REUSE_PORT", "")
    monkeypatch.setenv(TOKEN_VARIABLE, "a job's")
    with pytest.raises(_StartedError if asked else Refusal) as ended:
        Collective(CONFIG)
    assert said == ["10.0.0.1:4711"]
    assert opened == ([([("10.0.0.1", 4711), ("8.8.8.8", 4711)], "a job's")] if asked else [])
    if isinstance(ended.value, Refusal):
        assert "8.8.8.8, a public address" in ended.value.what and ended.value.code == ExitCode.UNSAFE


@pytest.mark.parametrize(
    ("kind", "said", "fate"),
    [
        (tf.errors.UnavailableError, "Collective ops is aborted by: failed to connect", "died or stalled"),
        (tf.errors.UnavailableError, "Collective ops is aborted by: Connection reset by peer", "died ("),
        (tf.errors.UnavailableError, "Collective ops is aborted by: Deadline Exceeded", "stalled or cannot"),
        (tf.errors.InternalError, "RecvBuf of /job:worker/replica:0/task:1 failed", "died or stalled"),
        (tf.errors.DeadlineExceededError, "Collective has timed out", "stalled or cannot"),
    ],
)
def test_a_lost_peer_is_named_so(alone: Collective, kind: Any, said: str, fate: str) -> None:
    with pytest.raises(Refusal) as refused, alone.naming_lost_peers():
        raise kind(None, None, said)
    assert f"since another worker {fate}" in str(refused.value)
    assert refused.value.code == ExitCode.PEER_LOST


def test_a_fault_of_this_worker_is_not_laid_at_anothers_door(alone: Collective) -> None:
    with pytest.raises(tf.errors.InternalError), alone.naming_lost_peers():
        raise tf.errors.InternalError(None, None, "Blas GEMM launch failed")


def test_of_many_lines_the_one_with_the_cause_is_said(alone: Collective) -> None:
    said = """Graph execution error:

Detected at node while/CollectiveReduceV2 defined at (most recent call last):
<stack traces unavailable>
Collective ops is aborted by: failed to connect to all addresses.
The error could be from a previous operation. Restart your program to reset.
\t [[{{node while/CollectiveReduceV2}}]] [Op:__inference_run_steps_1]"""
    with pytest.raises(Refusal) as refused, alone.naming_lost_peers():
        raise tf.errors.UnavailableError(None, None, said)
    assert "(Collective ops is aborted by: failed to connect to all addresses)." in str(refused.value)
