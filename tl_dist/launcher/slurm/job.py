"""Read a Slurm job from its environment variables, and find the address of its first node."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from tl_dist.files import limits
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous.rank_layout import integer, interface_address, slurm_tasks

INTERFACE_VARIABLE = "TL_DIST_INTERFACE"


@dataclass(frozen=True)
class Allocation:
    """A job, as the environment of its batch script describes it."""

    job_id: int
    restart_count: int
    plan: tuple[tuple[str, int], ...]

    @property
    def num_tasks(self) -> int:
        """Return the number of tasks on all nodes."""
        return sum(tasks for _, tasks in self.plan)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Allocation:
        """Read the job from its variables; refuse (64) outside of a job, (78) variables that contradict each other."""
        if "SLURM_JOB_ID" not in env:
            raise Refusal("this is not inside a Slurm job.", fix="use tl-dist submit.", code=ExitCode.USAGE)
        nodelist, layout = env.get("SLURM_JOB_NODELIST", ""), env.get("SLURM_TASKS_PER_NODE", "")
        tasks, hosts = tasks_per_node(layout), hostnames(nodelist)
        total = slurm_tasks(env)  # None in the batch script of a job submitted without a number of tasks
        if len(hosts) != len(tasks) or total not in (None, sum(tasks)):
            raise Refusal(
                f"Slurm job {env['SLURM_JOB_ID']} has tasks {_short(layout)} on nodes {_short(nodelist)}, "
                f"{total} in all: that does not add up.",
                fix="leave Slurm's variables as it set them.",
                code=ExitCode.UNSAFE,
            )
        restart_count = integer(env, "SLURM_RESTART_COUNT") if "SLURM_RESTART_COUNT" in env else 0
        return cls(integer(env, "SLURM_JOB_ID"), restart_count, tuple(zip(hosts, tasks, strict=True)))


def hostnames(nodelist: str) -> list[str]:
    """Expand Slurm's short form of hosts, in order: "node[08-10,12],gpu-a" -> node08 node09 node10 node12 gpu-a."""
    argv = ["scontrol", "show", "hostnames", nodelist]
    try:
        shown = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:  # no scontrol, or a list that is too long for a command line
        why = error.strerror
    else:
        hosts = shown.stdout.split()
        # Given an empty list, scontrol takes the environment's.
        if nodelist and hosts and not shown.returncode:
            return hosts
        why = shown.stderr.strip() or f"exit code {shown.returncode}"
    raise _unreadable(f"scontrol does not expand host list {_short(nodelist)} ({why}).")


def tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's short form of the tasks on each node: "2(x3),1" -> [2, 2, 2, 1]."""
    tasks: list[int] = []
    total = 0
    for entry in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", entry)
        if match is None:
            raise _unreadable(f"tasks per node {_short(text)} does not parse.")
        count, nodes = int(match[1]), int(match[2] or 1)
        total += count * nodes
        if len(tasks) + nodes > limits.HOSTS or total > limits.WORKERS:
            raise _unreadable(
                f"tasks per node {_short(text)}: more than {limits.HOSTS:,} nodes or {limits.WORKERS:,} tasks."
            )
        tasks.extend([count] * nodes)
    return tasks


def rendezvous_address(job: Allocation, env: Mapping[str, str]) -> str:
    """Return this node's IPv4 address for the rendezvous: the declared one, else Slurm's for the node.

    Loopback if the whole job is on this node. Refuses (78) a name that resolves to loopback: other nodes cannot
    reach that.
    """
    declared = env.get(INTERFACE_VARIABLE, "")
    if declared:
        address = declared if _is_address(declared) else interface_address(declared)
        if address is None:
            raise Refusal(
                f"{INTERFACE_VARIABLE}={declared}: {socket.gethostname()} has no IPv4 interface of that name.",
                fix=f"use one of {', '.join(known for _, known in socket.if_nameindex())}.",
                code=ExitCode.USAGE,
            )
        return address
    if len(job.plan) == 1:
        return "127.0.0.1"
    node = env.get("SLURMD_NODENAME") or job.plan[0][0]
    name = _node_address(node)
    if _is_address(name):
        return name
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "no address"
    if not _is_address(address) or address.startswith("127."):
        what = f"node {node} is called {name}, which is {address} here: other nodes cannot reach that."
        fix = "name the network interface between the nodes with tl-dist submit --interface."
        raise Refusal(what, fix=fix, code=ExitCode.UNSAFE)
    return address


def _short(text: str) -> str:
    return repr(text) if len(text) <= 200 else repr(text[:200]) + "..."


def _unreadable(what: str) -> Refusal:
    fix = "leave SLURM_JOB_NODELIST and SLURM_TASKS_PER_NODE as Slurm set them."
    return Refusal(what, fix=fix, code=ExitCode.UNSAFE)


def _node_address(node: str) -> str:
    """Return the address or name by which Slurm reaches a node."""
    try:
        shown = subprocess.run(["scontrol", "show", "node", node], capture_output=True, text=True).stdout
    except FileNotFoundError:
        shown = ""
    match = re.search(r"\bNodeAddr=(\S+)", shown)
    return match[1] if match else socket.gethostname()


def _is_address(text: str) -> bool:
    return re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", text) is not None
