"""Without Horovod: its stall settings, the device of its exchanges, and the report of a lost peer are right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from tl_dist.config import Config, DataConfig, ModelConfig, OptimizerConfig, SafetyConfig
from tl_dist.launcher.command import worker_environment
from tl_dist.parallel import horovod
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
        device = (
            context.context().device_name
        )  # where this thread's operations go; None: to a GPU where there is one
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
