"""Each strategy's workers are started with exactly the command lines and environments of tests/golden/command_*.txt.

After a change that is meant, `python -m tests.unit.launcher.test_command` writes the files again:
then read the difference.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from tl_dist.config import Config, registry
from tl_dist.files.process import elsewhere
from tl_dist.launcher import die_with_parent
from tl_dist.launcher.command import (
    local_commands,
    num_processes,
    num_workers,
    resolved,
    visible_gpus,
    worker_argv,
    worker_environment,
)
from tl_dist.launcher.local import local_launch
from tl_dist.refusal import Refusal
from tl_dist.rendezvous.rank_layout import placement_environment
from tl_dist.rendezvous.server import Rendezvous
from tl_dist.tools.doctor.environment import collect

GOLDEN = Path(__file__).parents[2] / "golden"

INHERITED = {
    "HOME": "/home/user",
    "PATH": "/usr/bin",
    "LD_LIBRARY_PATH": "/opt/cuda",
    "CUDA_VISIBLE_DEVICES": "0,1",
    "SLURM_JOB_ID": "7",
    "HOROVOD_FUSION_THRESHOLD": "1",
    "HOROVOD_RANK": "3",
    "AWS_SECRET_ACCESS_KEY": "never",
    "WANDB_API_KEY": "never",
    "DB_PASSWORD": "never",
    "HF_TOKEN": "never",
}

CASES = {"single": 1, "mirrored": 1, "horovod": 3}


def config_of(strategy: str, **runtime: object) -> Config:
    return Config.model_validate(
        {
            "name": "x",
            "strategy": strategy,
            "epochs": 1,
            "data": {"name": "synthetic"},
            "model": {"backbone": "tiny", "weights": "random"},
            "optimizer": {"learning_rate": 0.1},
            "runtime": runtime,
        }
    )


def rendered(strategy: str) -> str:
    """The command of every worker, and what differs in its environment from the one it is started from."""
    processes = CASES[strategy]

    def place(rank: int) -> Mapping[str, str]:
        plan = [("localhost", processes)]
        return placement_environment(plan, rank, "127.0.0.1:4711", {})

    with (
        mock.patch.object(os, "sched_getaffinity", return_value=range(8)),
        mock.patch.object(sys, "executable", "/venv/bin/python"),
    ):
        commands = local_commands(
            config_of(strategy),
            Path("/scratch/runs/x"),
            INHERITED,
            processes=processes,
            place=place if strategy == "horovod" else None,
        )
    lines = []
    for command in commands:
        lines.append(f"rank {command.rank}: {' '.join(command.argv)}")
        for name in sorted(INHERITED.keys() | command.environment.keys()):
            before, after = INHERITED.get(name), command.environment.get(name)
            if after is None:
                lines.append(f"  - {name}")
            elif before != after:
                lines.append(f"  + {name}={after}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("strategy", CASES)
def test_workers_are_started_as_the_golden_file_says(strategy: str) -> None:
    assert rendered(strategy) == (GOLDEN / f"command_{strategy}.txt").read_text()


SECRETS = [
    "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "WANDB_API_KEY", "SLURM_JWT", "TF_VAR_db_pass",
    "PYTHON_KEYRING_PASS", "SLURM_SPANK_AUTH", "NVIDIA_NGC_AUTH", "TF_AUTH", "GITHUB_PAT", "PAT", "SENTRY_DSN",
    "JUPYTER_COOKIE", "SSH_PASSPHRASE", "GNOME_KEYRING_CONTROL", "OAUTH2", "NETRC_AUTHKEY", "SSH_AUTH_SOCK",
    "AZURE_STORAGE_CONNECTION_STRING",
]  # fmt: skip
HONEST = [
    "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PATTERN", "XAUTHORITY", "GIT_AUTHOR_NAME", "AUTHOR",
    "PASSTHROUGH", "UCX_BYPASS", "COMPASS", "PWD", "OLDPWD", "PYTHON_KEYRING_BACKEND", "MUNGE_SOCKET",
    "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_CONF", "TMPDIR", "HOROVOD_GLOO_IFACE", "PATIENCE",
]  # fmt: skip


def test_workers_get_no_variable_that_looks_like_a_password_and_every_other_one() -> None:
    """By name, or by an address with a password in it."""
    addresses = {"http_proxy": "http://user:pass@proxy:3128", "https_proxy": "http://proxy:3128"}
    given = dict.fromkeys((*SECRETS, *HONEST), "x") | addresses
    found = worker_environment(config_of("single"), given, processes=1, cores=1)
    assert not found.keys() & {*SECRETS, "http_proxy"}
    assert {name for name in (*HONEST, "https_proxy") if name not in found} == set()


def test_a_report_shows_only_variables_that_are_known_by_name() -> None:
    telling = {"HOROVOD_CYCLE_TIME": "3", "SLURM_JOB_ID": "7", "TF_CPP_MIN_LOG_LEVEL": "1"}
    others = dict.fromkeys([*SECRETS, "SLURM_ANYTHING", "TF_VAR_db", "HOROVOD_X"], "x")
    assert collect(telling | others | {"PYTHONPATH": "https://me:pw@host/"})["variables"] == telling


def test_what_a_person_has_set_stays() -> None:
    chosen = {"OMP_NUM_THREADS": "3", "TF_CPP_MIN_LOG_LEVEL": "0", "HOROVOD_STALL_CHECK_TIME_SECONDS": "7"}
    found = worker_environment(config_of("horovod"), chosen, processes=2, cores=8)
    assert found | chosen == found
    assert found["OPENBLAS_NUM_THREADS"] == "4"


@pytest.mark.parametrize(
    ("threads", "processes", "cores", "expected"), [(None, 3, 8, "2"), (None, 4, 2, "1"), (5, 2, 8, "5")]
)
def test_threads_share_the_cores(threads: int | None, processes: int, cores: int, expected: str) -> None:
    found = worker_environment(config_of("horovod", threads=threads), {}, processes=processes, cores=cores)
    assert found["OMP_NUM_THREADS"] == expected


@pytest.mark.parametrize(("visible", "expected"), [("-1", None), ("0", "gpu_private"), ("0,1", "gpu_private")])
def test_kernels_of_a_gpu_are_launched_by_threads_of_its_own(visible: str, expected: str | None) -> None:
    """And no worker, of whatever kind, maps all of the memory that it sees."""
    given = {"CUDA_VISIBLE_DEVICES": visible}
    found = worker_environment(config_of("single"), given, processes=1, cores=8)
    assert found.get("TF_GPU_THREAD_MODE") == expected
    assert ("TF_FORCE_GPU_ALLOW_GROWTH" in found) == (expected is not None)


@pytest.mark.parametrize(
    ("environment", "devices", "expected"),
    [
        ({}, 0, 0),
        ({}, 3, 3),
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, 8, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 8, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 8, 0),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,2"}, 8, 1),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1a2b,MIG-3c"}, 0, 2),
        ({"SLURM_JOB_GPUS": "0,1,2,3"}, 0, 4),
        ({"SLURM_STEP_GPUS": "0", "SLURM_JOB_GPUS": "0,1"}, 0, 1),
    ],
)
def test_gpus_are_counted_without_a_framework(
    tmp_path: Path, environment: dict[str, str], devices: int, expected: int
) -> None:
    for k in range(devices):
        (tmp_path / "gpus" / f"0000:0{k}:00.0").mkdir(parents=True)
    assert visible_gpus(environment, tmp_path / "gpus") == expected


@pytest.mark.parametrize(
    ("strategy", "workers", "gpus", "replicas", "processes"),
    [
        ("single", None, 4, 1, 1),
        ("mirrored", None, 4, 4, 1),
        ("mirrored", 2, 4, 2, 1),
        ("horovod", None, 4, 4, 4),
        ("horovod", None, 0, 1, 1),
        ("horovod", 3, 0, 3, 3),
    ],
)
def test_one_worker_for_each_gpu_unless_told(
    strategy: str, workers: int | None, gpus: int, replicas: int, processes: int
) -> None:
    cfg = config_of(strategy).model_copy(update={"workers": workers})
    assert (num_workers(cfg, gpus), num_processes(cfg, gpus)) == (replicas, processes)


@pytest.mark.parametrize(
    ("workers", "gpus", "horovod", "strategy", "count"),
    [
        (None, 0, True, "single", 1),
        (1, 8, True, "single", 1),
        (None, 8, False, "mirrored", 8),
        (4, 8, True, "mirrored", 4),
        (2, 0, True, "horovod", 2),
        (2, 0, False, "collective", 2),
        (3, 2, False, "collective", 3),
    ],
)
def test_auto_is_settled_by_what_this_host_has(
    workers: int | None, gpus: int, horovod: bool, strategy: str, count: int
) -> None:
    cfg = config_of("auto").model_copy(update={"workers": workers})
    found = resolved(cfg, gpus=gpus, horovod=horovod)
    assert (found.strategy, found.workers) == (strategy, count)
    assert resolved(found, gpus=0, horovod=True) == found


def test_auto_that_nobody_has_settled_starts_nothing() -> None:
    with pytest.raises(Refusal, match="strategy 'auto' has not become"):
        registry.strategy("auto").start(config_of("auto"))


def test_an_evaluation_is_the_same_command_with_a_split() -> None:
    argv = worker_argv(Path("runs/x"), Path("asked"))
    assert argv == (sys.executable, "-P", "-m", "tl_dist.trainer", "runs/x", "asked")


def test_each_attempt_meets_at_a_rendezvous_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOROVOD_GLOO_IFACE", raising=False)
    cfg = config_of("horovod").model_copy(update={"workers": 2})
    launch = partial(local_launch, cfg, Path("runs/x"))
    ports = []
    for _ in range(2):
        with launch() as commands:
            environments = [command.environment for command in commands]
            assert [env["HOROVOD_RANK"] for env in environments] == ["0", "1"]
            assert {env["HOROVOD_GLOO_RENDEZVOUS_ADDR"] for env in environments} == {"127.0.0.1"}
            assert {env["HOROVOD_GLOO_IFACE"] for env in environments} == {"lo"}
            ports += [env["HOROVOD_GLOO_RENDEZVOUS_PORT"] for env in environments]
    assert ports[0] == ports[1] != ports[2] == ports[3]


def test_the_network_interface_and_the_timeout_may_be_set_by_hand() -> None:
    own = {"HOROVOD_GLOO_IFACE": "eth9", "HOROVOD_GLOO_TIMEOUT_SECONDS": "77", "NCCL_SOCKET_IFNAME": "ib0"}
    with Rendezvous([("localhost", 1)], "127.0.0.1") as rendezvous:
        assert own.items() <= rendezvous.worker_environment(0, own).items()


def test_a_tethered_command_keeps_its_pid_and_starts_only_below_its_parent() -> None:
    command = [sys.executable, "-c", "import os, resource; print(os.getpid(), resource.getrlimit(4)[0])"]
    started = subprocess.Popen(
        [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()), *command],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.communicate()[0].split() == [str(started.pid), "0"]
    orphan = subprocess.run([sys.executable, "-I", "-S", die_with_parent.__file__, "1", *command], capture_output=True)
    assert orphan.stdout == b""


def test_no_path_of_a_worker_means_the_working_directory() -> None:
    """Also where the library starts it, in whose process an empty entry of PYTHONPATH stays."""
    inherited = {"PATH": ":/bin::.", "PYTHONPATH": "", "LD_LIBRARY_PATH": "lib:/lib:"}
    found = worker_environment(config_of("single"), inherited, processes=1, cores=1)
    assert {name: found[name] for name in inherited} == {
        "PATH": "/bin",
        "PYTHONPATH": "",
        "LD_LIBRARY_PATH": "/lib",
    }
    assert elsewhere({"PATH": "bin:"}) == {"PATH": os.defpath}


if __name__ == "__main__":
    for name in CASES:
        (GOLDEN / f"command_{name}.txt").write_text(rendered(name))
