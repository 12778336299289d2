"""A port for a server that listens to everyone, with the kernel at its door. No framework here.

TensorFlow's server binds all interfaces whatever address it is given, asks nobody who he is, and runs the graphs that
it is sent. So nobody reaches it but `port_guard_process`, a process beside this one:

- The server's port is reserved here first, by a listening socket with SO_REUSEPORT, which the server's socket then
  joins; only processes of the same user can. Where sockets share a port, a program of classic BPF says which of them
  gets a new connection (socket(7), SO_ATTACH_REUSEPORT_CBPF). It needs no privilege, and is there before the server is.
  It gives all to the socket of this module, which drops them: the server does not even answer.
- At the worker's own address a socket of the doorkeeper has the same port, and comes first there. Who connects from
  this host must be this user, by what the kernel says of that very connection; from another host, have the job's token.
- For such a connection the doorkeeper makes one of its own to the server, from a port that nobody else can bind as long
  as it has it, and the program lets that one through.
- Workers connect to those of other hosts through their own doorkeeper, which shows the token there.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous import peers, port_guard_process

_ROOT = str(Path(__file__).parents[2])
_START = (
    "import sys; sys.path.append(sys.argv.pop()); import tl_dist.rendezvous.port_guard_process as d; d.main()"
)
_ANYWHERE = ("0" * 8, "0" * 32)
_BACKLOG = 4096
# These are for the worker, not for its child.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_STAND_INS = int.from_bytes(socket.inet_aton("127.1.0.0"), "big")


class PortGuard:
    """The port of the worker at `own`: shut until `open_to`. Raises OSError where the kernel has no such guard."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._shut = _bound_to_all()
        # Were this closed, the server's socket would be alone and get everything: it stays open until the process ends,
        # whatever Python collects before that.
        self._to_the_end = os.dup(self._shut.fileno())
        self._sockets = [self._shut]
        try:
            self.port: int = self._shut.getsockname()[1]
            port_guard_process.drop_all(self._shut)
            self._shut.listen(1)
            port_guard_process.let_in(self._shut, None)
            self._sockets.append(_bound(socket.AF_INET, own, self.port))
            self._sockets[-1].listen(_BACKLOG)
            self._sockets.append(_bound(socket.AF_INET, "0.0.0.0", 0))
            numbers = [each.fileno() for each in self._sockets]
            argv = [sys.executable, "-I", "-S", "-c", _START, *map(str, numbers), _ROOT]
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                self._keeper = subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=numbers)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except OSError:
            self._close_sockets()
            raise

    def open_to(self, workers: Sequence[tuple[str, int]], token: str) -> list[str]:
        """Let in this user's processes here, and the workers of other hosts by the token; where each can be reached."""
        way_out = self._sockets[-1]
        others = {_stand_in(rank): worker for rank, worker in enumerate(workers) if worker[0] != self._own}
        if others:
            way_out.listen(_BACKLOG)
        assert self._keeper.stdin
        with suppress(BrokenPipeError):  # without a doorkeeper nobody gets in
            self._keeper.stdin.write(json.dumps([(self._own, self.port), token, others]).encode() + b"\n")
            self._keeper.stdin.flush()
        return [
            f"{_stand_in(rank)}:{way_out.getsockname()[1]}" if _stand_in(rank) in others else f"{host}:{port}"
            for rank, (host, port) in enumerate(workers)
        ]

    def check(self) -> None:
        """To be called once the server listens. Refuses (78) where it does so without the door."""
        anywhere = {f"{address}:{self.port:04X}" for address in _ANYWHERE}
        listening: list[str] = []
        with suppress(OSError):
            listening = [row[1] for row in peers.rows() if row[1] in anywhere and row[3] == peers.LISTENING]
        if len(listening) != 2 or len(set(listening)) != 1:
            raise Refusal(
                f"TensorFlow's server listens on port {self.port} without its guard, so anybody could reach it.",
                fix="use strategy=horovod on this machine.",
                code=ExitCode.UNSAFE,
            )

    def close(self) -> None:
        """Give the port up. A process that only ends need not call it."""
        self._keeper.communicate()
        self._close_sockets()

    def _close_sockets(self) -> None:
        os.close(self._to_the_end)
        for each in self._sockets:
            each.close()


def _stand_in(rank: int) -> str:
    """The address of this host by which its doorkeeper knows a worker of another one."""
    return socket.inet_ntoa((_STAND_INS + rank).to_bytes(4, "big"))


def _bound_to_all() -> socket.socket:
    """A socket on a free port of all interfaces, of both families where there are both, as gRPC's own."""
    with suppress(OSError):
        return _bound(socket.AF_INET6, "::", 0)
    return _bound(socket.AF_INET, "0.0.0.0", 0)


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    """A socket that shares its port with others of this user."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made
