"""Derive a worker's rank, and Horovod's variables, from what its launcher put into the environment.

A *plan* lists the run's hosts in rank order, each with its number of workers; each host has consecutive ranks. `srun`
starts workers that know only Slurm's variables; two variables of our own, the same for all workers, carry the plan and
the address of the rendezvous (`tl_dist.rendezvous.server`), and each worker derives its own placement.
Imports no framework.
"""

import os
import re
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tl_dist.refusal import ExitCode, Refusal

PLAN_VARIABLE = "TL_DIST_PLAN"
RENDEZVOUS_VARIABLE = "TL_DIST_RENDEZVOUS"
GLOO_TIMEOUT_VARIABLE = "HOROVOD_GLOO_TIMEOUT_SECONDS"
_GLOO_TIMEOUT_S = 30

Plan = Sequence[tuple[str, int]]

_LAUNCHER_BY_RANK = {
    "HOROVOD_RANK": "horovodrun",
    "OMPI_COMM_WORLD_RANK": "mpirun",
    "SLURM_PROCID": "srun",
    "PMI_RANK": "mpirun",
    "PMIX_RANK": "mpirun",
}
"""launchers by the variable that holds the rank, the first that is set: mpirun inside a Slurm job starts its daemons
through srun, whose variables its ranks inherit, and `srun --mpi=pmix` sets PMIX_RANK as well"""
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Slurm's step numbers from here on are no tasks but the batch script, an interactive shell and so on"""


def gloo_timeout_s(size: int, env: Mapping[str, str] | None = None) -> int:
    """Return how long a collective waits for a peer that is frozen or cut off: the variable in `env`, else by `size`.

    A dead peer is noticed at once. Each worker must also connect to all others within this time: 30 s are too few from
    40 nodes on.
    """
    text = (env or {}).get(GLOO_TIMEOUT_VARIABLE, "")
    return int(text) if text.isdigit() else _GLOO_TIMEOUT_S + size // 16 * 4


@dataclass(frozen=True)
class Placement:
    """One worker's place in a plan. `cross_size` is the number of hosts that have a worker with this local rank."""

    host: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int


def placements_of(plan: Plan) -> list[Placement]:
    """Return every worker's placement, in rank order. Refuses (78) no hosts, a host without workers or named twice."""
    hosts = [host for host, _ in plan]
    if not plan or any(workers < 1 for _, workers in plan) or len(set(hosts)) != len(hosts):
        raise _inconsistent(f"a plan needs distinct hosts with workers on each, got {plan_text(plan)!r}.")
    size = sum(workers for _, workers in plan)
    cross_sizes = Counter(local_rank for _, workers in plan for local_rank in range(workers))
    met: Counter[int] = Counter()
    placements: list[Placement] = []
    for host, workers in plan:
        for local_rank in range(workers):
            cross = met[local_rank], cross_sizes[local_rank]
            placements.append(Placement(host, len(placements), size, local_rank, workers, *cross))
            met[local_rank] += 1
    return placements


def placement_environment(plan: Plan, rank: int, rendezvous: str, env: Mapping[str, str]) -> dict[str, str]:
    """Return one worker's variables, as a static Gloo run of Horovod 0.28.1 sets them (runner/gloo_run.py).

    `rendezvous` is "address:port". Keeps the network interfaces and the timeout that the user has set in `env`. Unlike
    Horovod, always sets the Gloo timeout (`gloo_timeout_s`).
    """
    placement = placements_of(plan)[rank]
    address, _, port = rendezvous.rpartition(":")
    if not address or not port.isdigit() or not 0 < int(port) < 65536:
        raise _inconsistent(f"{RENDEZVOUS_VARIABLE}={rendezvous!r} is not ADDRESS:PORT.")
    interface = env.get("HOROVOD_GLOO_IFACE") or network_interface_towards(address)
    numbers = {name: str(value) for name, value in vars(placement).items() if name != "host"}
    return {f"HOROVOD_{name.upper()}": number for name, number in numbers.items()} | {
        "HOROVOD_HOSTNAME": placement.host,
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": port,
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": interface,
        "NCCL_SOCKET_IFNAME": env.get("NCCL_SOCKET_IFNAME") or interface,
        GLOO_TIMEOUT_VARIABLE: str(gloo_timeout_s(placement.size, env)),
    }


def slurm_task_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a worker started by `srun` needs before it imports Horovod.

    Empty if no plan was passed: under `srun --mpi=pmix` Horovod asks MPI, and other launchers set its variables
    themselves. Refuses (78) a task whose place in Slurm is not its place in the plan: two workers would get one rank.
    """
    if PLAN_VARIABLE not in env:
        return {}
    plan = parse_plan(env[PLAN_VARIABLE])
    return placement_environment(plan, _slurm_rank(env, plan), env.get(RENDEZVOUS_VARIABLE, ""), env)


def _slurm_rank(env: Mapping[str, str], plan: Plan) -> int:
    placements = placements_of(plan)
    if not in_slurm_step(env):
        raise _inconsistent(f"the plan {plan_text(plan)!r} was passed to a process that is no srun task.")
    rank, local_rank, node = (integer(env, name) for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"))
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
    return rank


def started_by_launcher(env: Mapping[str, str]) -> str | None:
    """Return which launcher started this process as a worker: "horovodrun", "mpirun", "srun", or None."""
    name = rank_variable(env)
    # The only task of a Slurm step is no worker unless it carries a plan.
    if name == "SLURM_PROCID" and PLAN_VARIABLE not in env and (slurm_tasks(env) or 1) == 1:
        return None
    return _LAUNCHER_BY_RANK[name] if name else None


def expected_world_size(env: Mapping[str, str]) -> int | None:
    """Return how many workers the launcher started; None without one.

    Under an srun that passed neither a plan nor PMIx, every task would silently be a run of its own size.
    """
    size = _first_integer(env, "HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE")
    if size is None:
        return slurm_tasks(env) if in_slurm_step(env) else _first_integer(env, "PMI_SIZE")
    return size


def rank_variable(env: Mapping[str, str]) -> str | None:
    """Return the variable that holds the rank by this process's launcher; None without one."""
    names = (name for name in _LAUNCHER_BY_RANK if name in env)
    return next((name for name in names if name != "SLURM_PROCID" or in_slurm_step(env)), None)


def rank_in(env: Mapping[str, str]) -> int:
    """Return this process's rank by its launcher; 0 without one."""
    name = rank_variable(env)
    return integer(env, name) if name else 0


def own_cores(env: Mapping[str, str]) -> int:
    """Return the number of cores for this worker, bound to them by its launcher or not."""
    workers = _first_integer(env, "HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE") or 1
    return core_share(len(os.sched_getaffinity(0)), host_cores(env), workers)


def core_share(own: int, host: int, workers: int) -> int:
    """Return the cores for one of `workers`, which may run on `own` cores of the `host`'s: some launchers bind each."""
    return max(1, min(own, host // workers))


def host_cores(env: Mapping[str, str]) -> int:
    """Return the number of cores that all workers of this run share on this host.

    Slurm tells it. Other launchers start workers from a process that is not bound itself, so the parent's cores count.
    """
    if in_slurm_step(env) and "SLURM_CPUS_ON_NODE" in env:
        return integer(env, "SLURM_CPUS_ON_NODE")
    try:
        # The parent's pid is 0 if it is outside of this container; then pid 1 stands for it.
        return len(os.sched_getaffinity(os.getppid() or 1))
    except OSError:
        return os.cpu_count() or 1


def in_slurm_step(env: Mapping[str, str]) -> bool:
    """Return True in a task that srun started; False in a batch script, which has a rank but no numbered step."""
    step = env.get("SLURM_STEP_ID", "")
    return "SLURM_PROCID" in env and step.isdigit() and int(step) < _FIRST_SPECIAL_STEP


def slurm_tasks(env: Mapping[str, str]) -> int | None:
    """Return the number of the step's tasks. SLURM_NTASKS comes second: an srun of fewer tasks inherits the job's."""
    return _first_integer(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")


def plan_text(plan: Plan) -> str:
    """Write the plan as one word: "node1:2,node2:1"."""
    return ",".join(f"{host}:{workers}" for host, workers in plan)


def parse_plan(text: str) -> list[tuple[str, int]]:
    """Parse what `plan_text` wrote; refuse (78) any other text."""
    plan = []
    for entry in text.split(","):
        host, _, workers = entry.rpartition(":")
        if not host or not workers.isdigit():
            raise _inconsistent(f"{PLAN_VARIABLE}={text!r} is not a list of HOST:WORKERS.")
        plan.append((host, int(workers)))
    return plan


def network_interface_towards(address: str) -> str:
    """Return the interface from which this host reaches `address` (IPv4). Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # UDP: only a look-up in the routing table
        except OSError as error:
            raise no_interface(
                f"no route from {socket.gethostname()} to {address} ({error.strerror or error})."
            ) from error
        own = probe.getsockname()[0]
    for _, name in socket.if_nameindex():
        if interface_address(name) == own or (own.startswith("127.") and name == "lo"):
            return name
    raise no_interface(f"{socket.gethostname()} reaches {address} from {own}, which is no interface's first address.")


def interface_address(name: str) -> str | None:
    """Return the first IPv4 address of this host's interface `name`; None if it has none or does not exist."""
    import psutil

    addresses = psutil.net_if_addrs().get(name, ())
    return next((each.address for each in addresses if each.family == socket.AF_INET), None)


def integer(env: Mapping[str, str], name: str) -> int:
    """Return the variable as an integer; refuse (78) a missing one, and any other text."""
    text = env.get(name)
    if text is None or not re.fullmatch(r"-?\d{1,18}", text):
        raise _inconsistent(f"{name} is {'missing' if text is None else f'{text!r}, not a number'}.")
    return int(text)


def _first_integer(env: Mapping[str, str], *names: str) -> int | None:
    return next((integer(env, name) for name in names if name in env), None)


def _inconsistent(what: str) -> Refusal:
    fix = "start workers with tl-dist submit or tl-dist train, and pass srun no layout of your own."
    return Refusal(what, fix=fix, code=ExitCode.UNSAFE)


def no_interface(what: str) -> Refusal:
    """Return the refusal (78) of a host that the others may not reach."""
    fix = "name the interface between the hosts in HOROVOD_GLOO_IFACE."
    return Refusal(what, fix=fix, code=ExitCode.UNSAFE)
