"""Which worker am I? From what a launcher put into the environment to Horovod's variables. No framework here.

A *plan* is the run's hosts in rank order, each with its number of workers; ranks go over it in blocks. `srun`
starts workers that know only Slurm's variables; the plan and the address of the rendezvous
(`tl_dist.rendezvous.server`) travel with them in two variables of our own, the same for all, and each worker
derives its own placement.
"""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tl_dist.refusal import ExitCode, Refusal

PLAN_VARIABLE = "TL_DIST_PLAN"
RENDEZVOUS_VARIABLE = "TL_DIST_RENDEZVOUS"
GLOO_TIMEOUT_VARIABLE = "HOROVOD_GLOO_TIMEOUT_SECONDS"
_GLOO_TIMEOUT_S = 30

Plan = Sequence[tuple[str, int]]

_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""From here on Slurm numbers what is no task: the batch script, an interactive shell and so on."""
_SIOCGIFADDR = 0x8915  # netdevice(7)


def gloo_timeout_s(size: int, env: Mapping[str, str] | None = None) -> int:
    """How long a collective waits for a peer that is frozen or cut off, or what is set in `env` in its place.

    A dead one is noticed at once.

    In the same time each worker must have connected to all others: with 30 s that fails from 40 nodes on.
    """
    text = (env or {}).get(GLOO_TIMEOUT_VARIABLE, "")
    return int(text) if text.isdigit() else _GLOO_TIMEOUT_S + size // 16 * 4


@dataclass(frozen=True)
class Placement:
    """One worker's place in a plan. `cross` counts the hosts that have a worker with this local rank."""

    host: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int


def placements_of(plan: Plan) -> list[Placement]:
    """Every worker's placement, in rank order. Refuses (78) an empty plan, an empty host, a host named twice."""
    hosts = [host for host, _ in plan]
    if not plan or any(workers < 1 for _, workers in plan) or len(set(hosts)) != len(hosts):
        raise _inconsistent(
            f"a plan needs distinct hosts with one worker or more each, got {plan_text(plan)!r}."
        )
    size = sum(workers for _, workers in plan)
    cross_sizes = Counter(local_rank for _, workers in plan for local_rank in range(workers))
    met: Counter[int] = Counter()
    placements: list[Placement] = []
    for host, workers in plan:
        for local_rank in range(workers):
            placements.append(
                Placement(
                    host, len(placements), size, local_rank, workers, met[local_rank], cross_sizes[local_rank]
                )
            )
            met[local_rank] += 1
    return placements


def placement_environment(
    plan: Plan, rank: int, *, rendezvous: str, interface: str, timeout_s: int | None = None
) -> dict[str, str]:
    """The variables of one worker, as a static Gloo run of Horovod 0.28.1 sets them (runner/gloo_run.py).

    `rendezvous` is "address:port"; `interface` is the worker's network interface towards its peers. The Gloo
    timeout (`gloo_timeout_s`), which Horovod leaves to its default, is always written out.
    """
    placement = placements_of(plan)[rank]
    address, port = _address_and_port(rendezvous)
    return {
        "HOROVOD_HOSTNAME": placement.host,
        "HOROVOD_RANK": str(placement.rank),
        "HOROVOD_SIZE": str(placement.size),
        "HOROVOD_LOCAL_RANK": str(placement.local_rank),
        "HOROVOD_LOCAL_SIZE": str(placement.local_size),
        "HOROVOD_CROSS_RANK": str(placement.cross_rank),
        "HOROVOD_CROSS_SIZE": str(placement.cross_size),
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": interface,
        "NCCL_SOCKET_IFNAME": interface,
        GLOO_TIMEOUT_VARIABLE: str(timeout_s or gloo_timeout_s(placement.size)),
    }


def slurm_task_environment(
    env: Mapping[str, str], *, interface_towards: Callable[[str], str] | None = None
) -> dict[str, str]:
    """What a worker started by `srun` adds to its environment before it imports Horovod.

    Empty when no plan was passed: under `srun --mpi=pmix` Horovod asks MPI, other launchers set its variables
    themselves. What the user set (interface, NCCL's interface, timeout) is kept. Refuses (78) a task whose
    place in Slurm is not its place in the plan: two workers would meet under one rank.
    """
    if PLAN_VARIABLE not in env:
        return {}
    plan = parse_plan(env[PLAN_VARIABLE])
    rank = slurm_placement(env, plan).rank
    rendezvous = env.get(RENDEZVOUS_VARIABLE, "")
    address, _ = _address_and_port(rendezvous)
    interface = env.get("HOROVOD_GLOO_IFACE") or (interface_towards or network_interface_towards)(address)
    added = placement_environment(plan, rank, rendezvous=rendezvous, interface=interface)
    for name in ("NCCL_SOCKET_IFNAME", GLOO_TIMEOUT_VARIABLE):
        if env.get(name):
            added[name] = env[name]
    return added


def slurm_placement(env: Mapping[str, str], plan: Plan) -> Placement:
    """This srun task's placement. Refuses (78) when Slurm's numbers for it are not those of the plan."""
    placements = placements_of(plan)
    if not in_slurm_step(env):
        raise _inconsistent(f"the plan {plan_text(plan)!r} was passed to a process that is no srun task.")
    rank, local_rank, node = (
        integer(env, name) for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
    )
    tasks = slurm_tasks(env)
    if tasks != len(placements) or not 0 <= rank < len(placements):
        raise _inconsistent(
            f"this is task {rank} of {tasks}, but the plan {plan_text(plan)!r} has {len(placements)} workers."
        )
    placement = placements[rank]
    if (local_rank, node) != (placement.local_rank, [host for host, _ in plan].index(placement.host)):
        raise _inconsistent(
            f"task {rank} is number {local_rank} on node {node}; the plan {plan_text(plan)!r} has it "
            f"as number {placement.local_rank} on {placement.host}."
        )
    return placement


def started_by_launcher(env: Mapping[str, str]) -> str | None:
    """Who started this process as one of several workers: "horovodrun", "mpirun", "srun", or None for nobody.

    `mpirun` inside a Slurm job starts its daemons through srun, whose variables its ranks inherit, so MPI is
    asked before Slurm; `srun --mpi=pmix` sets PMIX_RANK as well, so that one is asked last. A batch script
    has a SLURM_PROCID too, but no step; a step of one task is nobody's worker unless it carries a plan.
    """
    if "HOROVOD_RANK" in env:
        return "horovodrun"
    if "OMPI_COMM_WORLD_RANK" in env:
        return "mpirun"
    if in_slurm_step(env):
        return "srun" if PLAN_VARIABLE in env or (slurm_tasks(env) or 1) > 1 else None
    if "PMI_RANK" in env or "PMIX_RANK" in env:
        return "mpirun"
    return None


def expected_world_size(env: Mapping[str, str]) -> int | None:
    """How many workers the launcher started, or None outside of any.

    Horovod must be of this size: under an srun that passed neither a plan nor PMIx every task would silently
    be a run of its own. The order is that of `started_by_launcher`.
    """
    for name in ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE"):
        if name in env:
            return integer(env, name)
    if in_slurm_step(env):
        return slurm_tasks(env)
    return integer(env, "PMI_SIZE") if "PMI_SIZE" in env else None


def rank_variable(env: Mapping[str, str]) -> str | None:
    """The variable in which the launcher of this process says its number; None outside of any. Order as above."""
    names = ["HOROVOD_RANK", "OMPI_COMM_WORLD_RANK"]
    names += ["SLURM_PROCID"] if in_slurm_step(env) else ["PMI_RANK", "PMIX_RANK"]
    return next((name for name in names if name in env), None)


def rank_in(env: Mapping[str, str]) -> int:
    """This process's number among those that the launcher started; 0 outside of any."""
    name = rank_variable(env)
    return integer(env, name) if name else 0


def local_workers(env: Mapping[str, str]) -> int:
    """Workers of this run on this host: they share its cores. 1 outside of any launcher."""
    for name in ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        if name in env:
            return integer(env, name)
    return 1


def in_slurm_step(env: Mapping[str, str]) -> bool:
    """Whether this is a task that srun started: not the batch script, not a shell on the login node."""
    step = env.get("SLURM_STEP_ID", "")
    return "SLURM_PROCID" in env and step.isdigit() and int(step) < _FIRST_SPECIAL_STEP


def slurm_tasks(env: Mapping[str, str]) -> int | None:
    """Tasks of the step; SLURM_NTASKS alone may still be the job's, which an srun of fewer tasks inherits."""
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        if name in env:
            return integer(env, name)
    return None


def plan_text(plan: Plan) -> str:
    """The plan as one word: "node1:2,node2:1"."""
    return ",".join(f"{host}:{workers}" for host, workers in plan)


def parse_plan(text: str) -> list[tuple[str, int]]:
    """The inverse of `plan_text`."""
    plan = []
    for entry in text.split(","):
        host, _, workers = entry.rpartition(":")
        if not host or not workers.isdigit():
            raise _inconsistent(f"{PLAN_VARIABLE}={text!r} is not a list of HOST:WORKERS.")
        plan.append((host, int(workers)))
    return plan


def network_interface_towards(address: str) -> str:
    """The name of the interface from which this host reaches `address` (IPv4). Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # UDP: only a look-up in the routing table
        except OSError as error:
            raise _no_interface(
                f"no route from {socket.gethostname()} to {address} ({error.strerror or error})."
            ) from error
        own = probe.getsockname()[0]
    for _, name in socket.if_nameindex():
        if interface_address(name) == own or (own.startswith("127.") and name == "lo"):
            return name
    raise _no_interface(
        f"{socket.gethostname()} reaches {address} from {own}, which is no interface's first address."
    )


def interface_address(name: str) -> str | None:
    """The first IPv4 address of this host's interface `name`; None when it has none or does not exist."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def integer(env: Mapping[str, str], name: str) -> int:
    """The variable as a number; refuses one that is missing or is none."""
    text = env.get(name)
    if text is None or not re.fullmatch(r"-?\d{1,18}", text):
        raise _inconsistent(f"{name} is {'missing' if text is None else f'{text!r}, not a number'}.")
    return int(text)


def _address_and_port(rendezvous: str) -> tuple[str, int]:
    address, _, port = rendezvous.rpartition(":")
    if not address or not port.isdigit() or not 0 < int(port) < 65536:
        raise _inconsistent(f"{RENDEZVOUS_VARIABLE}={rendezvous!r} is not ADDRESS:PORT.")
    return address, int(port)


def _inconsistent(what: str) -> Refusal:
    fix = "start workers with tl-dist submit or tl-dist train, and pass srun no layout of your own."
    return Refusal(what, fix=fix, code=ExitCode.UNSAFE)


def _no_interface(what: str) -> Refusal:
    return Refusal(
        what, fix="name the interface between the hosts in HOROVOD_GLOO_IFACE.", code=ExitCode.UNSAFE
    )
