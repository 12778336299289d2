"""Forks commands or workers, each for a client: `python server.py SOCKET KIND`. Ends with the test run it is for."""

import contextlib
import faulthandler
import gc
import json
import os
import pkgutil
import resource
import runpy
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tl_dist import cli, config, files, launcher, runs, terminal, tools
from tl_dist.config import extensions, registry
from tl_dist.files.failpoint import failpoint
from tl_dist.trainer.__main__ import import_keras

ROOMS = (cli, config, files, launcher, runs, terminal, tools)
OF_COMMANDS = (
    "tl_dist.cli.main",  # first: it imports the commands in the order of the help
    *(
        module.name
        for room in ROOMS
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")
        if not module.name.endswith("__main__") and (room is not tools or module.name.endswith(".command"))
    ),
    "sklearn.model_selection",
    "typer._adapters",
)
OF_WORKERS = (
    "tl_dist.trainer.attempt",
    "tl_dist.trainer.setup",
    "sklearn.datasets",
    "sklearn.metrics",
    "sklearn.model_selection",
    "scipy.stats",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
)
SAYING_S = 30.0
"""for a client to say what it wants"""


def folders(environment: Mapping[str, str]) -> list[str]:
    """Those that Python would search first."""
    return [os.path.abspath(entry) for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]


def become(asked: dict[str, Any], given: list[int]) -> None:
    """Make this process what the client would have been."""
    os.setsid()
    free = 1 + max(*asked["files"], *given)
    moved = [os.dup2(fd, free + k) for k, fd in enumerate(given)]  # out of the way of the numbers they get
    for fd, number in zip(moved, asked["files"], strict=True):
        os.dup2(fd, number)
    for fd in {*given, *moved} - {*asked["files"]}:
        os.close(fd)
    os.chdir(asked["folder"])
    known, wanted = folders(os.environ), folders(asked["environment"])
    sys.path[:] = dict.fromkeys([*wanted, *(folder for folder in sys.path if folder not in known)])
    os.environ.clear()
    os.environ.update(asked["environment"])
    for limit, *values in asked["limits"]:
        resource.setrlimit(limit, tuple(values))
    os.sched_setaffinity(0, asked["cores"])
    failpoint.__init__(os.environ)  # type: ignore[misc]  # every module has this one object
    tempfile.tempdir = None
    if os.environ.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()
    sys.argv = list(asked["words"])


def run(words: list[str]) -> None:
    """The command `tl-dist`, or else as `python -m WORDS...` does."""
    if Path(words[0]).name == "tl-dist":
        sys.exit(import_module("tl_dist.cli.main").main())
    warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # of runpy: so it is
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


class Server:
    """Answers each client with its fork's pid, and then with the status of its end."""

    def __init__(self, directory: Path, listening: socket.socket) -> None:
        self._directory = directory
        self._listening = listening
        owner = os.pidfd_open(int((directory / "owner").read_text()))
        self._selector = selectors.DefaultSelector()
        self._selector.register(listening, selectors.EVENT_READ, self._fork)
        self._selector.register(owner, selectors.EVENT_READ, self._end)
        self._forks: dict[int, socket.socket] = {}

    def serve(self) -> None:
        """Until the owner ends; returns in each fork, what it is to run."""
        while True:
            for key, _ in self._selector.select():
                words = key.data()
                if words is not None:
                    return run(words)

    def _end(self) -> None:
        for pid in list(self._forks):
            self._alone(pid)
        shutil.rmtree(self._directory, ignore_errors=True)  # of an owner that was killed
        sys.exit()

    def _fork(self) -> list[str] | None:
        client, _ = self._listening.accept()
        client.settimeout(SAYING_S)
        given: list[int] = []
        try:
            _, given, _, _ = socket.recv_fds(client, 1, 64)
            asked = json.loads(client.makefile("r").readline())
        except (OSError, ValueError):  # killed before it had said all
            client.close()
            for fd in given:
                os.close(fd)
            return None
        client.settimeout(None)
        pid = os.fork()
        if not pid:
            self._listening.close()
            client.close()
            self._selector.close()
            for other in self._forks.values():
                other.close()
            become(asked, given)
            return asked["words"]
        for fd in given:
            os.close(fd)
        self._forks[pid] = client
        ended = os.pidfd_open(pid)
        self._selector.register(ended, selectors.EVENT_READ, lambda: self._ended(pid, ended))
        self._selector.register(client, selectors.EVENT_READ, lambda: self._alone(pid))
        with contextlib.suppress(OSError):  # killed since: its end is read next
            client.sendall(f"{pid}\n".encode())
        return None

    def _ended(self, pid: int, ended: int) -> None:
        _, status = os.waitpid(pid, 0)
        self._selector.unregister(ended)
        os.close(ended)
        client = self._forks.pop(pid)
        if client.fileno() in self._selector.get_map():
            self._selector.unregister(client)
        with contextlib.suppress(OSError):  # the client was killed
            client.sendall(f"{status}\n".encode())
        client.close()

    def _alone(self, pid: int) -> None:
        """The client is gone, so the fork goes, with what it started."""
        self._selector.unregister(self._forks[pid])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.killpg(pid, signal.SIGKILL)


def main() -> None:
    path, kind = Path(sys.argv[1]), sys.argv[2]
    if kind == "worker":
        import_keras()
    else:
        sys.executable = str(path.with_name("python"))
    for name in OF_WORKERS if kind == "worker" else OF_COMMANDS:
        import_module(name)
    extensions.offers(registry.BACKBONE.group)  # read once, and again where a package has been installed
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(64)
        Server(path.parent, listening).serve()


if __name__ == "__main__":
    main()
