"""`tl-dist`, and a Python for the modules of workers: has a server's fork run it, and is to its parent what that is.

The standard library alone, in a Python without site-packages: this costs 30 ms.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time

FORKED = ("tl_dist.trainer", "tl_dist.models", "tl_dist.tools.augment", "tests.")
"""how the names of modules begin that a server's fork runs"""
LATE = (
    "COMP_", "HOROVOD_", "MLFLOW_", "NCCL_", "PYTEST_", "SLURM", "SRUN_", "TL_", "WANDB_", "_TL_DIST_", "_TYPER_",
)  # fmt: skip
"""Variables that a process reads after its imports, if at all, or that a server obeys for its fork; a server has one
value of every other one."""
LATE_NAMES = (
    "COLUMNS",
    "HOME",
    "LINES",
    "OLDPWD",
    "PATH",
    "PWD",
    "PYTHONPATH",
    "RAN",
    "SHLVL",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "_",
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGABRT)
LIMITS = (resource.RLIMIT_CORE, resource.RLIMIT_DATA, resource.RLIMIT_NOFILE)
START_S = 120


def as_tl_dist(executable: str, directory: str) -> None:
    end(played(executable, directory, "command", sys.argv))


def as_python(executable: str, directory: str) -> None:
    """Any other module or program is run by the Python of the tests."""
    arguments = sys.argv[1:]
    if arguments[:2] != ["-P", "-m"] or not arguments[2].startswith(FORKED):
        os.execv(executable, [executable, *arguments])
    end(played(executable, directory, "worker", arguments[2:]))


def played(executable: str, directory: str, kind: str, words: list) -> int:
    """The status, as of waitpid, with which a fork of this kind ends."""
    files = [0, 1, 2, *inherited()]
    asked = {
        "words": words,
        "files": files,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "limits": [[limit, *resource.getrlimit(limit)] for limit in LIMITS],
        "cores": sorted(os.sched_getaffinity(0)),
    }
    with connection(executable, directory, kind) as server:
        socket.send_fds(server, [b"\n"], files)
        lines = server.makefile("rw")
        print(json.dumps(asked), file=lines, flush=True)
        pid = int(lines.readline())
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: pass_on(pid, number))
        return int(lines.readline())


def inherited() -> list:
    """What is open beyond the standard streams, by the parent's wish."""
    found = [int(name) for name in os.listdir("/proc/self/fd")]
    return [fd for fd in sorted(found) if fd > 2 and is_open(fd) and os.get_inheritable(fd)]


def is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def pass_on(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def end(status: int) -> None:
    """Leave as the fork did."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def connection(executable: str, directory: str, kind: str) -> socket.socket:
    """To the server of this kind and environment, which the first one to ask starts."""
    early = sorted(kv for kv in os.environ.items() if not kv[0].startswith(LATE) and kv[0] not in LATE_NAMES)
    path = os.path.join(directory, kind + hashlib.sha256(repr(early).encode()).hexdigest()[:16])
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            return connected(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of a server that is no more
        argv = [executable, "-P", os.path.join(os.path.dirname(__file__), "server.py"), path, kind]
        with open(os.path.join(directory, "path")) as file:
            environment = os.environ | {"PYTHONPATH": file.read()}
        with open(f"{path}.log", "w") as log:
            server = subprocess.Popen(
                argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(OSError):
                return connected(path)
            time.sleep(0.05)
        with open(f"{path}.log") as log:
            raise RuntimeError(f"no {kind} can be forked: {log.read()[-2000:]}")


def connected(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    try:
        made.connect(path)
    except OSError:
        made.close()
        raise
    return made
