"""A real Slurm on this machine, below a temporary directory: a controller and virtual nodes on 127.0.0.1.

Each node is a slurmd of its own with its own port, spool and temporary directory. The daemons stay in the
foreground as children of this process, so that they are waited for (a container's first process may not reap
strangers) and end with it, even when it is killed.
"""

import getpass
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

NUM_NODES = 3
CPUS_PER_NODE = 4
"""More than the machine may have: nodes just claim them (config_overrides); no task is bound to a core."""

PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "scontrol",
    "squeue",
    "sinfo",
    "scancel",
    "setpriv",
)
SOCKET_PATH_LIMIT = 107  # sun_path of unix(7), without its final zero

SLURM_CONF = """\
ClusterName=tldist
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it may start again (default: 120 s)
AuthInfo=socket={base}/munge/socket,cred_expire=5
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd-%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd-%n.log
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
# one per node: the PMIx plugin makes a directory there whose name does not hold the node, and nodes would
# race for it
TmpFS={base}/tmp/%n
# no cgroups, no accounting, no mail
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={base}/log/finished_jobs.txt
MailProg=/bin/true
RebootProgram=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
MpiDefault=none
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptParameters=send_user_signal
JobRequeue=1
ReturnToService=2
# a lost node is noticed in seconds; UnkillableStepTimeout must be at least 5 x MessageTimeout
SlurmctldTimeout=30
SlurmdTimeout=10
TCPTimeout=2
MessageTimeout=10
UnkillableStepTimeout=60
KillWait=5
MinJobAge=300
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

# Slurm wants device nodes; nothing opens these, so every node may claim the same two.
GRES_CONF = """\
AutoDetect=off
NodeName={names} Name=gpu File=/dev/zero
NodeName={names} Name=gpu File=/dev/full
"""


class ClusterError(AssertionError):
    """The cluster did not do what a test needs; with the ends of its logs. Fails the test, never skips it."""


@dataclass(frozen=True)
class FinishedJob:
    """What Slurm says of a job that is over."""

    state: str
    exit_code: int
    signal: int
    restarts: int


@dataclass
class SlurmCluster:
    """A running cluster. `env` points Slurm's own programs at it."""

    base: Path
    num_nodes: int = NUM_NODES
    _daemons: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list, init=False)
    _claims: list[socket.socket] = field(default_factory=list, init=False)

    @property
    def conf(self) -> Path:
        return self.base / "etc" / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """This process's environment, without any enclosing Slurm job, with this cluster's SLURM_CONF."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        return clean | {"SLURM_CONF": str(self.conf)}

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Write the configuration, start every daemon, return when all nodes are idle."""
        _require_programs()
        self._write_files()
        munge = self.base / "munge"
        self._spawn(
            "munged",
            "--foreground",
            f"--key-file={munge}/key",
            f"--socket={munge}/socket",
            f"--pid-file={munge}/pid",
            f"--log-file={self.base}/log/munged.log",
            f"--seed-file={munge}/seed",
            "--num-threads=2",
        )
        self.wait_until(lambda: (munge / "socket").exists(), "munged's socket", timeout_s)
        self._spawn("slurmctld", "-D", "-f", str(self.conf))
        for k in range(1, self.num_nodes + 1):
            self._spawn("slurmd", "-D", "-f", str(self.conf), "-N", f"node{k}")
        self.wait_until(self._all_idle, f"{self.num_nodes} idle nodes", timeout_s)

    def stop(self) -> None:
        """End all jobs, then all daemons, then what a job left behind. What is gone already is no error."""
        try:
            # Jobs first: the slurmstepd of a running job outlives its slurmd.
            self._end_jobs()
        finally:
            self._end_daemons()
            for pid in self._strays():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def run(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = 120.0,
    ) -> str:
        """Stdout of a command that talks to this cluster; a ClusterError with its stderr when it fails."""
        try:
            done = subprocess.run(
                argv,
                env=self.env | dict(env or {}),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterError(
                f"{' '.join(argv)}: no end after {timeout_s:.0f} s\n{error.stderr!r}\n{self.logs()}"
            ) from None
        if done.returncode:
            raise ClusterError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        text = self.run("scontrol", "show", "job", job_id, timeout_s=10)
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float, *, every_s: float = 0.1) -> None:
        """Block until `condition()`; a ClusterError when a daemon ends, or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            dead = [f"{name} ({process.returncode})" for name, process in self._daemons if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                reason = f"ended: {', '.join(dead)}" if dead else f"not within {timeout_s:.0f} s"
                raise ClusterError(f"waiting for {what}: {reason}\n{self._try('squeue')}\n{self.logs()}")
            time.sleep(every_s)

    def wait_for_state(self, job_id: str, *states: str, timeout_s: float) -> str:
        """Block until the job is in one of `states`."""
        self.wait_until(
            lambda: self.job(job_id)["JobState"] in states,
            f"job {job_id} in {states}",
            timeout_s,
            every_s=0.5,  # each look is a process, and the job computes
        )
        return self.job(job_id)["JobState"]

    def wait(self, job_id: str, *, timeout_s: float) -> FinishedJob:
        """Block until the job is over; a requeued job is not."""
        over = (
            "COMPLETED",
            "FAILED",
            "CANCELLED",
            "TIMEOUT",
            "NODE_FAIL",
            "OUT_OF_MEMORY",
            "BOOT_FAIL",
            "DEADLINE",
        )
        state = self.wait_for_state(job_id, *over, timeout_s=timeout_s)
        fields = self.job(job_id)
        exit_code, signal = fields["ExitCode"].split(":")
        return FinishedJob(state, int(exit_code), int(signal), int(fields["Restarts"]))

    def logs(self, lines: int = 15) -> str:
        """The end of every daemon's log."""
        parts = []
        for path in sorted((self.base / "log").glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"--- {path.name}", *tail]))
        return "\n".join(parts)

    def _end_jobs(self, *, timeout_s: float = 10.0) -> None:
        if not any(name == "slurmctld" and process.poll() is None for name, process in self._daemons):
            return
        self._try("scancel", "--full", "--me")
        deadline = time.monotonic() + timeout_s
        while self._try("squeue", "--noheader").strip() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _end_daemons(self, *, timeout_s: float = 10.0) -> None:
        for _, process in reversed(self._daemons):
            if process.poll() is None:
                process.terminate()
        for _, process in reversed(self._daemons):
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._daemons.clear()
        for claim in self._claims:
            claim.close()

    def _write_files(self) -> None:
        for name in ("etc", "run", "log", "state", "munge"):
            (self.base / name).mkdir(mode=0o755)
        names = [f"node{k}" for k in range(1, self.num_nodes + 1)]
        for name in names:
            (self.base / "spool" / name).mkdir(parents=True)
            (self.base / "tmp" / name).mkdir(parents=True)
        host = socket.gethostname().split(".")[0]
        (controller_port, *ports), self._claims = _free_ports(1 + self.num_nodes)
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={CPUS_PER_NODE} RealMemory=4000 Gres=gpu:2 State=UNKNOWN"
            for name, port in zip(names, ports, strict=True)
        )
        self.conf.write_text(
            SLURM_CONF.format(
                host=host,
                base=self.base,
                user=getpass.getuser(),
                controller_port=controller_port,
                nodes=nodes,
            )
        )
        etc = self.conf.parent
        (etc / "gres.conf").write_text(GRES_CONF.format(names=",".join(names)))
        (etc / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        (etc / "plugstack.conf").write_text("")
        key = self.base / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def _spawn(self, program: str, *args: str) -> None:
        # setpriv makes the kernel end the daemon when this process dies, however it dies.
        # prlimit, because a crashing task would leave its core file in the directory of the job.
        argv = ["prlimit", "--core=0", "setpriv", "--pdeathsig", "TERM", program, *args]
        with open(self.base / "log" / f"{len(self._daemons)}-{program}.log", "wb") as log:
            process = subprocess.Popen(
                argv,
                env=self.env,
                cwd=self.base / "run",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._daemons.append((program, process))

    def _all_idle(self) -> bool:
        states = self._try("sinfo", "--noheader", "--Node", "--partition=main", "--format=%t").split()
        return states == ["idle"] * self.num_nodes

    def _try(self, *argv: str) -> str:
        done = subprocess.run(argv, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        return done.stdout

    def _strays(self) -> Iterator[int]:
        """Processes that carry this cluster's SLURM_CONF: its path is unique, so they belong to its jobs."""
        mark = f"SLURM_CONF={self.conf}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if mark in environ.split(b"\0"):
                yield int(entry.name)


@contextmanager
def slurm_cluster(num_nodes: int = NUM_NODES) -> Iterator[SlurmCluster]:
    """A cluster that is idle on entry, and gone with all its jobs on exit, whatever happens in between."""
    # Not pytest's tmp_path: munged wants every directory above its socket to be open to others, and a short
    # path.
    with tempfile.TemporaryDirectory(prefix="tl-slurm-", ignore_cleanup_errors=True) as name:
        base = Path(name)
        base.chmod(0o755)
        if len(f"{base}/munge/socket.lock") > SOCKET_PATH_LIMIT:
            raise ClusterError(f"{base} is too long for a unix socket. Fix: set TMPDIR to a shorter path.")
        cluster = SlurmCluster(base, num_nodes)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def _require_programs() -> None:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise ClusterError(
            f"the cluster tests need a real Slurm; not found: {', '.join(missing)}. "
            "Fix: run launch/test, which installs it, or apt-get install slurm-wlm munge."
        )


def _free_ports(count: int) -> tuple[list[int], list[socket.socket]]:
    """Ports that nobody listens on, below the range from which the kernel takes ports for clients.

    A name for each in the abstract namespace of unix sockets, held open, keeps other clusters of this machine from
    choosing it before the daemon listens there.
    """
    ports: list[int] = []
    claims: list[socket.socket] = []
    for port in random.sample(range(15000, 32000), 200):
        claim = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe:
            try:
                claim.bind(f"\0tl-dist-tests-port-{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                claim.close()
                continue
        ports.append(port)
        claims.append(claim)
        if len(ports) == count:
            return ports, claims
    raise ClusterError(f"fewer than {count} free ports between 15000 and 32000")
