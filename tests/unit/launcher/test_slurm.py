"""Without Slurm: a job's environment is understood, the batch script complete, each end of srun and its tasks told."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.harness import state_of
from tl_dist import config
from tl_dist.launcher.classify_exits import classify
from tl_dist.launcher.command import Command
from tl_dist.launcher.hang import HangDetector
from tl_dist.launcher.slurm import job as job_module
from tl_dist.launcher.slurm import submit
from tl_dist.launcher.slurm.driver import Step, srun_command
from tl_dist.launcher.slurm.job import Allocation, hostnames, rendezvous_address, tasks_per_node
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous import rank_layout
from tl_dist.rendezvous.rank_layout import (
    Placement,
    expected_world_size,
    network_interface_towards,
    parse_plan,
    placement_environment,
    placements_of,
    plan_text,
    slurm_task_environment,
    started_by_launcher,
)
from tl_dist.runs.exit_records import ExitRecords
from tl_dist.runs.heartbeats import Beat

GOLDEN = Path(__file__).parents[2] / "golden"
UNEVEN = [("node1", 2), ("node2", 1)]

BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_TASKS_PER_NODE": "2,1",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
"""What a batch script sees (Slurm 24.11): it has a PROCID, but no step."""

TASK_1 = BATCH | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}
PLANNED_TASK_1 = TASK_1 | {"TL_DIST_PLAN": "node1:2,node2:1", "TL_DIST_RENDEZVOUS": "10.0.0.1:4000"}

MPIRUN_IN_SLURM = TASK_1 | {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "0",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "3",
    "PMIX_RANK": "1",
}
"""Every rank inherits the variables of its node's daemon, which srun started."""


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's own is asked in tests/cluster; this one knows one list."""
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] || exit 1\nprintf "node1\\nnode2\\n"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.parametrize("nodelist", ["", "node[1-", "x" * 3_000_000, "a\nb"])
def test_host_list_that_slurm_does_not_expand_is_refused(scontrol: None, nodelist: str) -> None:
    assert hostnames("node[1-2]") == ["node1", "node2"]
    with pytest.raises(Refusal, match="Fix: ") as refusal:
        hostnames(nodelist)
    assert refusal.value.code == ExitCode.UNSAFE
    assert len(str(refusal.value)) < 500


def test_a_node_without_scontrol_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refusal, match=r"scontrol does not expand host list 'node1' \(No such file"):
        hostnames("node1")


def test_as_many_hosts_as_any_job_has_are_placed_at_once():
    plan = [(f"a{k:05}", 1) for k in range(65_536)]
    assert placements_of(plan)[-1] == Placement("a65535", 65535, 65536, 0, 1, 65535, 65536)
    assert len(tasks_per_node("1" + ",1" * 65_535)) == 65_536


@pytest.mark.parametrize(
    ("text", "tasks"), [("1", [1]), ("2,1", [2, 1]), ("2(x3),1", [2, 2, 2, 1]), ("4(x2),3(x2)", [4, 4, 3, 3])]
)
def test_tasks_per_node_expand(text, tasks):
    assert tasks_per_node(text) == tasks


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "2(x)", "2(3)", "-1", "2,,1", "\u0663", "1(x9999999999)", "1(x65537)", "9999999"),
        *("9" * 5000, f"1(x{'9' * 5000})", ",".join(["99(x60000)"] * 9)),
    ],
    ids=range(13),
)
def test_tasks_per_node_that_do_not_parse_or_are_too_many_are_refused(text):
    with pytest.raises(Refusal, match="Fix: ") as refusal:
        tasks_per_node(text)
    assert len(str(refusal.value)) < 500


def test_job_is_read_from_the_batch_scripts_environment(scontrol):
    job = Allocation.from_env(BATCH | {"SLURM_RESTART_COUNT": "2"})
    assert (job.job_id, job.restart_count, job.num_tasks) == (7, 2, 3)
    assert list(job.plan) == UNEVEN


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"SLURM_JOB_ID": None}, ExitCode.USAGE),
        ({"SLURM_TASKS_PER_NODE": "2"}, ExitCode.UNSAFE),
        ({"SLURM_TASKS_PER_NODE": "2,2"}, ExitCode.UNSAFE),
        ({"SLURM_NTASKS": "4"}, ExitCode.UNSAFE),
        ({"SLURM_JOB_NODELIST": None}, ExitCode.UNSAFE),
        ({"SLURM_JOB_ID": "seven"}, ExitCode.UNSAFE),
    ],
)
def test_inconsistent_job_is_refused(scontrol, change, code):
    env = {name: value for name, value in (BATCH | change).items() if value is not None}
    with pytest.raises(Refusal, match="Fix: ") as refusal:
        Allocation.from_env(env)
    assert refusal.value.code == code


def test_cross_rank_counts_only_hosts_that_have_the_local_rank():
    placements = placements_of([("a", 1), ("b", 3), ("c", 2)])
    assert [(s.rank, s.host, s.local_rank, s.local_size, s.cross_rank, s.cross_size) for s in placements] == [
        (0, "a", 0, 1, 0, 3),
        (1, "b", 0, 3, 1, 3),
        (2, "b", 1, 3, 0, 2),
        (3, "b", 2, 3, 0, 1),
        (4, "c", 0, 2, 2, 3),
        (5, "c", 1, 2, 1, 2),
    ]


def test_plan_survives_its_text():
    assert plan_text(UNEVEN) == "node1:2,node2:1"
    assert parse_plan(plan_text(UNEVEN)) == UNEVEN


@pytest.mark.parametrize("plan", [[], [("a", 0)], [("a", 1), ("a", 1)]])
def test_plan_that_is_none_is_refused(plan):
    with pytest.raises(Refusal, match="Fix: "):
        placements_of(plan)


def test_placement_environment_is_that_of_horovods_static_launcher():
    assert placement_environment(UNEVEN, 2, "10.0.0.1:4000", {"HOROVOD_GLOO_IFACE": "eth0"}) == {
        "HOROVOD_HOSTNAME": "node2",
        "HOROVOD_RANK": "2",
        "HOROVOD_SIZE": "3",
        "HOROVOD_LOCAL_RANK": "0",
        "HOROVOD_LOCAL_SIZE": "1",
        "HOROVOD_CROSS_RANK": "1",
        "HOROVOD_CROSS_SIZE": "2",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.1",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": "4000",
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": "eth0",
        "NCCL_SOCKET_IFNAME": "eth0",
        "HOROVOD_GLOO_TIMEOUT_SECONDS": "30",
    }


def test_srun_task_finds_its_slot(monkeypatch):
    monkeypatch.setattr(rank_layout, "network_interface_towards", lambda address: f"towards {address}")
    added = slurm_task_environment(PLANNED_TASK_1)
    assert added["HOROVOD_RANK"] == "1"
    assert added["HOROVOD_LOCAL_RANK"] == "1"
    assert added["HOROVOD_CROSS_SIZE"] == "1"
    assert added["HOROVOD_GLOO_IFACE"] == added["NCCL_SOCKET_IFNAME"] == "towards 10.0.0.1"


def test_srun_task_keeps_what_the_user_set():
    mine = {"HOROVOD_GLOO_IFACE": "ib0", "NCCL_SOCKET_IFNAME": "ib1", "HOROVOD_GLOO_TIMEOUT_SECONDS": "5"}
    assert mine.items() <= slurm_task_environment(PLANNED_TASK_1 | mine).items()


def test_task_without_a_plan_adds_nothing():
    assert slurm_task_environment(TASK_1) == {}
    assert slurm_task_environment({}) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_LOCALID": "0"},  # srun was told to distribute in another way
        {"SLURM_NODEID": "1"},
        {"SLURM_PROCID": "3"},
        {"SLURM_STEP_NUM_TASKS": "2"},
        {"TL_DIST_PLAN": "node1:3,node2:1"},
        {"TL_DIST_PLAN": "node1"},
        {"TL_DIST_RENDEZVOUS": "10.0.0.1"},
        {"SLURM_STEP_ID": ""},
    ],
)
def test_task_that_is_not_where_the_plan_has_it_is_refused(change):
    with pytest.raises(Refusal, match="Fix: ") as refusal:
        slurm_task_environment(PLANNED_TASK_1 | {"HOROVOD_GLOO_IFACE": "lo"} | change)
    assert refusal.value.code == ExitCode.UNSAFE


@pytest.mark.parametrize(
    ("env", "launcher", "size"),
    [
        ({}, None, None),
        (BATCH, None, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "3"}, None, None),  # salloc's shell
        (TASK_1, "srun", 3),
        (TASK_1 | {"SLURM_STEP_ID": "4294967290"}, None, None),  # the interactive step of salloc
        (TASK_1 | {"SLURM_STEP_ID": "4294967291"}, None, None),  # the batch step
        (TASK_1 | {"PMIX_RANK": "1"}, "srun", 3),  # srun --mpi=pmix
        (TASK_1 | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None, 1),  # srun --pty bash
        (PLANNED_TASK_1 | {"SLURM_STEP_NUM_TASKS": "1"}, "srun", 1),
        (TASK_1 | {"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2"}, "horovodrun", 2),
        ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2"}, "horovodrun", 2),
        (MPIRUN_IN_SLURM, "mpirun", 3),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "mpirun", 2),
        ({"PMI_RANK": "0", "PMI_SIZE": "4"}, "mpirun", 4),
    ],
)
def test_launcher_and_world_size_are_told_from_the_environment(env, launcher, size):
    assert started_by_launcher(env) == launcher
    assert expected_world_size(env) == size


def test_interface_towards_loopback_is_loopback():
    assert network_interface_towards("127.0.0.1") == "lo"


OPTIONS = {
    "least": submit.SubmitOptions(),
    "most": submit.SubmitOptions(
        nodes=4,
        ntasks_per_node=2,
        gpus_per_node=2,
        cpus_per_task=8,
        partition="gpu",
        time="1-00:00:00",
        account="vision",
        signal_lead_s=300,
        max_requeue=9,
        mpi="pmix",
        interface="ib0",
        extra=("--constraint=a100", "--exclusive"),
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_batch_script_is_the_golden_one(name):
    text = submit.render(OPTIONS[name], run_dir=Path("/data/runs/digits"), python="/opt/venv/bin/python")
    assert text == (GOLDEN / f"slurm_{name}.sbatch").read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_srun_command_is_the_golden_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/venv/bin/python")
    argv = srun_command(Path("/data/runs/digits"), num_tasks=3, cpus_per_task=8)
    assert "\n".join(argv) + "\n" == (GOLDEN / "slurm_srun.txt").read_text()


def test_an_option_without_a_value_is_left_out_and_one_with_several_is_repeated():
    assert submit.fill("a {{x}} b", {"x": "1"}) == "a 1 b\n"
    assert submit.fill("#SBATCH -p {{x}}\n#SBATCH {{y}}", {"x": None, "y": ("-A", "-B")}) == "#SBATCH -A\n#SBATCH -B\n"


def test_values_are_never_taken_for_holes():
    assert submit.fill("{{x}}", {"x": "{{y}}"}) == "{{y}}\n"


@pytest.mark.parametrize("path", ["/data/my runs/x", "/data/%j", '/data/"', "/data/x\n#SBATCH --wrap", "/data/$HOME"])
def test_path_that_an_option_line_cannot_hold_is_refused(path):
    with pytest.raises(Refusal, match="Fix: "):
        submit.render(submit.SubmitOptions(), run_dir=Path(path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nodes": 0}, "nodes=0"),
        ({"time": "1h"}, "time='1h'"),
        ({"time": "3"}, "never get to train"),
        ({"partition": "a b"}, "partition='a b'"),
        ({"account": "x\n#SBATCH --wrap=y"}, "account="),
        ({"extra": ("--comment=a\n#SBATCH --wrap=y",)}, "extra.0="),
        ({"ntasks_per_node": 2, "gpus_per_node": 1}, "without a GPU"),
        ({"gpus_per_node": 8, "ntasks_per_node": 8}, "asks for no CPUs"),
        ({"gpus_per_node": 8, "extra": ("--exclusive", "--constraint=a100")}, "Fix: add --cpus-per-task"),
        ({"mpi": "pmi2"}, "mpi='pmi2'"),
    ],
)
def test_option_that_is_wrong_is_refused_by_name(given, message):
    with pytest.raises(Refusal, match="Fix: ") as refusal:
        submit.options_from(**given)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.code == ExitCode.USAGE


@pytest.mark.parametrize("more", [{"cpus_per_task": 14}, {"extra": ("--cpus-per-gpu=14",)}, {"extra": ("-c14",)}])
def test_gpus_with_cpus_are_asked_for(more):
    assert submit.options_from(gpus_per_node=8, ntasks_per_node=8, **more).gpus_per_node == 8


def test_options_that_were_not_given_keep_their_defaults():
    assert submit.options_from(nodes=2, time=None) == submit.SubmitOptions(nodes=2)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("5", 300),
        ("5:30", 330),
        ("1:05:30", 3930),
        ("1-0", 86400),
        ("1-2:30", 95400),
        ("1-2:30:05", 95405),
        ("0", 0),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(limit, expected):
    assert submit.seconds(limit) == expected


def test_dry_run_shows_the_step_and_every_rank(tmp_path):
    step, *ranks = submit.commands_of(submit.SubmitOptions(nodes=2, ntasks_per_node=2), tmp_path)
    assert step.startswith("srun --mpi=none --ntasks=4 ")
    assert len(ranks) == 4
    assert ranks[3] == f"rank 3, node 1, local rank 1: {sys.executable} -P -m tl_dist.trainer {tmp_path}"


SAFETY = config.SafetyConfig(hang_s=10, first_step_s=100)


@pytest.mark.parametrize(
    ("steps_and_ages", "now", "hung"),
    [
        ([(8, 9.0), (8, 9.0)], 50.0, []),
        ([(8, 9.0), (8, 11.0)], 50.0, [1]),
        ([(8, 12.0), (8, 11.0)], 50.0, [0, 1]),  # the longest silent first
        ([(5, 99.0), (5, 11.0)], 150.0, []),  # not one step in this attempt yet: it may compile
        ([(5, 101.0), (5, 11.0)], 150.0, [0]),
        ([(8, 1.0), None], 99.0, []),  # still importing
        ([(8, 1.0), None], 101.0, [1]),
    ],
)
def test_silent_workers_are_found(steps_and_ages, now, hung):
    beats = {
        rank: Beat(age_s=known[1], phase="training", step=known[0], host="node1", pid=1)
        for rank, known in enumerate(steps_and_ages)
        if known
    }
    found = HangDetector(SAFETY, from_step=5, now=0.0).hung(range(2), beats, now=now)
    assert list(found) == hung
    assert all("stalled, without progress for " in how for how in found.values())


def job(num_nodes: int) -> Allocation:
    return Allocation(7, 0, tuple((f"node{k}", 1) for k in range(num_nodes)))


def test_rendezvous_listens_on_loopback_when_the_job_is_on_one_node():
    assert rendezvous_address(job(1), {}) == "127.0.0.1"


def test_rendezvous_listens_where_slurm_reaches_the_node(monkeypatch):
    monkeypatch.setattr(job_module, "_node_address", lambda node: {"node0": "10.0.0.7"}[node])
    assert rendezvous_address(job(2), {"SLURMD_NODENAME": "node0"}) == "10.0.0.7"


def test_rendezvous_listens_on_the_declared_interface():
    assert rendezvous_address(job(2), {"TL_DIST_INTERFACE": "lo"}) == "127.0.0.1"
    assert rendezvous_address(job(2), {"TL_DIST_INTERFACE": "10.0.0.8"}) == "10.0.0.8"
    with pytest.raises(Refusal, match="Fix: use one of"):
        rendezvous_address(job(2), {"TL_DIST_INTERFACE": "none7"})


@pytest.mark.parametrize("name", ["localhost", "no-such-host.invalid"])
def test_rendezvous_that_other_nodes_cannot_reach_is_refused(name, monkeypatch):
    monkeypatch.setattr(job_module, "_node_address", lambda _: name)
    with pytest.raises(Refusal, match="Fix: name the network interface") as refusal:
        rendezvous_address(job(2), {})
    assert refusal.value.code == ExitCode.UNSAFE


@pytest.mark.parametrize(("answer", "said"), [(0, "requeued"), (1, "not requeued by itself. Fix: ")])
def test_the_batch_script_says_whether_slurm_took_the_requeue(tmp_path: Path, answer: int, said: str) -> None:
    """Slurm refuses it for a job that a preemption has requeued already."""
    for name, lines in (("scontrol", f"exit {answer}"), ("driver", "exit 75")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "logs").mkdir()
    text = submit.render(submit.SubmitOptions(max_requeue=3), run_dir=tmp_path, python=str(tmp_path / "driver"))
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", text], env=environ, capture_output=True, text=True, timeout=30)
    assert done.returncode == 75
    assert f"attempt 0: {said}" in done.stderr


SRUN = """\
import os, subprocess, sys
tasks = [subprocess.Popen(sys.argv[1:], env=os.environ | {"SLURM_PROCID": str(rank)}) for rank in range(3)]
sys.exit(max(task.wait() for task in tasks))
"""
"""Three tasks on this host; the exit code is the highest, as srun's own."""

TASK = "import json, os, signal, sys, time\nact = json.loads(os.environ['ACTS'])[int(os.environ['SLURM_PROCID'])]\n"
ACT = """
from tl_dist.runs.exit_records import Exit, ExitRecords
if act == "refuse":
    rank = int(os.environ["SLURM_PROCID"])
    ExitRecords.from_env(os.environ).write(Exit(rank, 65, "x.png is torn.", "restore it."))
    os._exit(65)
if act == "lose its node":
    with open(os.environ["READY"], "w") as file:
        file.write(str(os.getpid()))
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
if act == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if act == "wait":
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(75))
    open(os.environ["READY"], "w").close()
    time.sleep(60)
sys.exit(act)
"""


def step_of(tmp_path: Path, *acts: object, srun: str = SRUN) -> Step:
    """A step whose srun is a program of this host."""
    task = (sys.executable, "-m", "tl_dist.launcher.slurm.task", sys.executable, "-c", TASK + ACT)
    env = os.environ | {"SLURM_JOB_ID": "7", "ACTS": json.dumps(acts), "READY": str(tmp_path / "ready")}
    command = (sys.executable, "-c", srun, *task)
    (tmp_path / "attempts").mkdir()
    return Step(
        [Command(rank, command, env) for rank in range(3)],
        lambda rank: tmp_path / f"{rank}.out",
        ExitRecords(tmp_path / "attempts" / "0001"),
    )


def test_each_task_leaves_its_exit_code_also_one_that_is_killed(tmp_path: Path) -> None:
    with step_of(tmp_path, 0, "kill", "refuse") as step:
        assert step.wait(30)
    exits = {exit.rank: (exit.code, exit.what, exit.fix) for exit in step.exits}
    assert exits == {0: (0, "", ""), 1: (137, "", ""), 2: (65, "x.png is torn.", "restore it.")}


def test_a_task_of_which_nothing_is_left_is_named_when_srun_has_ended(tmp_path: Path) -> None:
    """And its worker does not live on."""
    with step_of(tmp_path, 76, "lose its node", 76) as step:
        assert step.wait(30)
    outcome = classify(step.exits, done=False)
    assert (outcome.rank, outcome.restartable) == (1, True)
    assert re.match(r"left no exit code, and srun ended with \d+: ", outcome.cause)
    worker, deadline = int((tmp_path / "ready").read_text()), time.monotonic() + 10
    while state_of(worker) not in "ZX":
        assert time.monotonic() < deadline


def test_an_srun_that_starts_nothing_is_a_lost_attempt(tmp_path: Path) -> None:
    with step_of(tmp_path, srun="raise SystemExit(1)") as step:
        assert step.wait(30)
    outcome = classify(step.exits, done=False)
    assert outcome.restartable and "srun ended with 1" in outcome.cause


def test_a_signal_to_a_task_reaches_its_worker(tmp_path: Path) -> None:
    env = os.environ | {
        "SLURM_JOB_ID": "7",
        "ACTS": '["wait"]',
        "SLURM_PROCID": "0",
        "READY": str(tmp_path / "ready"),
    }
    env |= ExitRecords(tmp_path / "0001").environment
    argv = [sys.executable, "-m", "tl_dist.launcher.slurm.task", sys.executable, "-c", TASK + ACT]
    with subprocess.Popen(argv, env=env) as task:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        task.send_signal(signal.SIGUSR1)
        assert task.wait(30) == 75
    assert [(record.rank, record.code) for record in ExitRecords(tmp_path / "0001").read([0])] == [(0, 75)]
