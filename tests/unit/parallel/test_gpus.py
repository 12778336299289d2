"""Each process takes the GPUs that are its own, a part of their memory at a time; too few are refused by number."""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from tests.doubles import CONFIG
from tl_dist.config import registry
from tl_dist.parallel import collective, gpus, horovod
from tl_dist.parallel.mirrored import Mirrored
from tl_dist.parallel.single import SingleDevice
from tl_dist.refusal import ExitCode, Refusal

SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_ID": "0"}
OURS = {"HOROVOD_RANK": "1"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1"}


class Host:
    """TensorFlow's view of a host with so many GPUs, and what it is told about them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.gpus = [f"gpu {k}" for k in range(count)]
        self.visible: list[str] | None = None
        self.growing: list[str] = []
        cpus = tf.config.list_physical_devices("CPU")
        lists: Callable[[str], Any] = lambda kind: self.gpus if kind == "GPU" else cpus  # noqa: E731
        monkeypatch.setattr(tf.config, "list_physical_devices", lists)
        monkeypatch.setattr(tf.config, "set_visible_devices", self._show)
        monkeypatch.setattr(tf.config.experimental, "set_memory_growth", self._grow)

    def _show(self, devices: list[str], kind: str) -> None:
        assert kind == "GPU" and self.visible is None and not self.growing
        self.visible = list(devices)

    def _grow(self, gpu: str, on: bool) -> None:
        assert on
        self.growing.append(gpu)


@pytest.mark.parametrize(
    ("visible", "local_rank", "workers", "environment", "expected"),
    [
        (8, 5, 8, OURS, 5),
        (8, 3, 4, OURS, 3),
        (1, 0, 1, OURS, 0),
        (1, 1, 2, OURS, (2, 1)),  # a workstation
        (2, 3, 4, OURS, (4, 2)),
        (2, 0, 4, OURS, (4, 2)),  # the first one is refused as well, not only who finds none
        (8, 3, 8, SRUN, 3),
        (1, 3, 8, SRUN, 0),  # bound by Slurm to one each
        (1, 3, 8, SRUN | {"SLURM_GPUS_ON_NODE": "8"}, 0),
        (1, 1, 2, SRUN | {"SLURM_GPUS_ON_NODE": "1"}, (2, 1)),
        (1, 3, 8, SRUN | OURS, 0),  # ours below srun
        (1, 3, 4, MPIRUN, 0),  # a script around each rank
        (2, 3, 4, MPIRUN, (4, 2)),
        (2, 3, 4, SRUN, (4, 2)),
    ],
)
def test_each_worker_takes_one_gpu_or_the_numbers_are_said(
    monkeypatch: pytest.MonkeyPatch,
    visible: int,
    local_rank: int,
    workers: int,
    environment: dict[str, str],
    expected: int | tuple[int, int],
) -> None:
    host = Host(monkeypatch, visible)
    if isinstance(expected, int):
        assert gpus.take_own(local_rank, workers, environment) == ["GPU:0"]
        assert host.visible == host.growing == [f"gpu {expected}"]
        return
    with pytest.raises(Refusal) as refused:
        gpus.take_own(local_rank, workers, environment)
    asked, there = expected
    assert f"{asked} workers on this host, which shows {there} GPU" in refused.value.what
    assert refused.value.code == ExitCode.USAGE
    assert host.visible is None


def test_without_gpus_any_number_of_workers_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, 0)
    assert gpus.take_own(3, 8, OURS) == [] and gpus.take_first(1) == []
    assert host.visible is None


def test_a_single_device_leaves_the_other_gpus_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, 8)
    SingleDevice(CONFIG)
    assert host.visible == host.growing == ["gpu 0"]


def test_a_notebook_that_has_used_tensorflow_keeps_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    Host(monkeypatch, 1)

    def refuse(*_: object) -> None:
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", refuse)
    assert SingleDevice(CONFIG).num_replicas == 1
    with pytest.raises(RuntimeError):  # a worker of our own has made a mistake
        gpus.take_own(0, 1, OURS)


@pytest.mark.parametrize("strategy", ["horovod", "collective"])
def test_workers_that_are_processes_take_one_each(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    host = Host(monkeypatch, 8)
    place = {"RANK": 13, "SIZE": 16, "LOCAL_RANK": 5, "LOCAL_SIZE": 8}
    for name, value in place.items():
        monkeypatch.setenv(f"HOROVOD_{name}", str(value))
    if strategy == "horovod":
        asked = {name.lower(): lambda value=value: value for name, value in place.items()}
        fake = SimpleNamespace(init=lambda: None, nccl_built=lambda: 1, **asked)
        monkeypatch.setattr(horovod, "_import_horovod", lambda: fake)
        # It writes its settings down there.
        monkeypatch.setattr(horovod, "os", SimpleNamespace(environ=dict(os.environ)))
    else:
        monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_ADDR", "10.0.0.1")
        monkeypatch.setattr(collective.Collective, "_connect", lambda self, timeout_s: None)
    registry.strategy(strategy).start(CONFIG.model_copy(update={"strategy": strategy, "workers": 16}))
    assert host.visible == host.growing == ["gpu 5"]


@pytest.mark.parametrize(("workers", "replicas"), [(4, 4), (None, 8)])
def test_mirrored_takes_as_many_as_it_has_replicas(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, replicas: int
) -> None:
    host, made = Host(monkeypatch, 8), []
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda devices, **_: made.append(devices))
    found = Mirrored(CONFIG.model_copy(update={"strategy": "mirrored", "workers": workers}))
    assert found.num_replicas == replicas
    assert host.visible == host.growing == host.gpus[:replicas]
    assert made == [[f"GPU:{k}" for k in range(replicas)]]


def test_mirrored_refuses_more_replicas_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    Host(monkeypatch, 2)
    with pytest.raises(Refusal, match="4 workers on this host, which shows 2 GPUs"):
        Mirrored(CONFIG.model_copy(update={"strategy": "mirrored", "workers": 4}))
