"""A port for a server that listens to everyone, with the kernel at its door. No framework here.

TensorFlow's server binds all interfaces whatever address it is given, asks nobody who he is, and runs the graphs that
it is sent. So its port is reserved here first, by a listening socket with SO_REUSEPORT, which the server's socket then
joins; only processes of the same user can. Where sockets share a port, a program of classic BPF says which of them gets
a new connection (socket(7), SO_ATTACH_REUSEPORT_CBPF). It needs no privilege, and is there before the server is:

- A connection from another host of the run goes to the server.
- One from this host does if its other end belongs to this user, by the kernel's own table. Its first packet is dropped;
  by the time that the kernel sends it again, a second later, `doorkeeper` has looked it up.
- Any other goes to the socket of this module, which drops it: to strangers the port does not even answer.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress

from tl_dist.parallel import doorkeeper
from tl_dist.refusal import ExitCode, Refusal


class Door:
    """The guarded port of this process: shut until `open_to`. Raises OSError where the kernel has no such guard."""

    def __init__(self) -> None:
        self._socket = _bound_to_all()
        try:
            doorkeeper.drop_all(self._socket)
            self._socket.listen(1)
            doorkeeper.let_in(self._socket, [])
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self._keeper: subprocess.Popen[bytes] | None = None

    def open_to(self, own: str, hosts: Collection[str]) -> None:
        """Let in the other `hosts`, IPv4 addresses, and from `own`, this host's, the processes of this user."""
        others = sorted({*hosts} - {own})
        doorkeeper.let_in(self._socket, [rule for address in others for rule in doorkeeper.if_from(address)])
        argv = [sys.executable, "-I", "-S", doorkeeper.__file__, str(self._socket.fileno()), str(self.port)]
        self._keeper = subprocess.Popen(
            [*argv, own, *others], stdin=subprocess.PIPE, pass_fds=[self._socket.fileno()]
        )

    def check(self) -> None:
        """To be called once the server listens. Refuses (78) where it does so without the door."""
        tables = [
            row.table
            for row in doorkeeper.rows()
            if row.state == doorkeeper.LISTENING and row.port == self.port
        ]
        if len(tables) != 2 or len(set(tables)) != 1:
            raise Refusal(
                f"TensorFlow's server listens on port {self.port} without its guard, so anybody could reach it.",
                fix="use strategy=horovod on this machine.",
                code=ExitCode.UNSAFE,
            )

    def close(self) -> None:
        """Give the port up. A process that only ends need not call it."""
        if self._keeper is not None:
            self._keeper.communicate()
        self._socket.close()


def _bound_to_all() -> socket.socket:
    """A socket on a free port of all interfaces, of both families where there are both, as gRPC's own."""
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        with suppress(OSError):
            made = socket.socket(family, socket.SOCK_STREAM)
            try:
                if family == socket.AF_INET6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                made.bind((address, 0))
            except OSError:
                made.close()
                raise
            return made
    raise OSError("no socket can be bound to all interfaces")
