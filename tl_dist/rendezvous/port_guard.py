"""Guard the port of TensorFlow's server, which accepts connections from anyone, by a filter in the kernel.

TensorFlow's server binds all interfaces whatever address it is given, authenticates nobody, and runs the graphs that
it is sent. So only `port_guard_process`, a process beside this one, may connect to it:

- This module reserves the server's port first, by a listening socket with SO_REUSEPORT, which the server's socket then
  joins; only processes of the same user can. Where sockets share a port, a program in classic BPF picks the one that
  gets a new connection (socket(7), SO_ATTACH_REUSEPORT_CBPF). It needs no privilege, and exists before the server does.
  It gives all connections to the socket of this module, which drops them: the server does not even answer.
- At the worker's own address a socket of the port guard process listens on the same port, and takes precedence. A
  client on this host must be a process of this user, as the kernel says of that very connection; a client on another
  host must prove that it has the job's token.
- For each accepted client the port guard process opens a connection to the server, from a port that nobody else can
  bind meanwhile, and the BPF program lets that connection through.
- A worker connects to workers on other hosts through its own port guard process, which proves the token there.

Imports no framework.
"""

import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous import peers, port_guard_process
from tl_dist.rendezvous.barrier import rendezvous_of
from tl_dist.rendezvous.rank_layout import interface_address, network_interface_towards, no_interface

OPEN_PORT_VARIABLE = "TL_DIST_OPEN_PORT"
"""environment variable; 1 allows public addresses, and kernels that cannot guard the port of TensorFlow's server"""
_ROOT = str(Path(__file__).parents[2])
_START = "import sys; sys.path.append(sys.argv.pop()); import tl_dist.rendezvous.port_guard_process as d; d.main()"
_ANYWHERE = ("0" * 8, "0" * 32)
_BACKLOG = 4096
# The worker handles these; its child must not.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_STAND_INS = int.from_bytes(socket.inet_aton("127.1.0.0"), "big")


class PortGuard:
    """Reserve a port at the address `own`, closed until `open_to`. Raises OSError if the kernel has no such filter."""

    def __init__(self, own: str) -> None:
        self._own = own
        reserved = _bound_to_all()
        # Were this closed, the server's socket would be alone on the port and get every connection: the duplicate stays
        # open until the process ends, whatever Python's garbage collector closes before that.
        self._duplicate = os.dup(reserved.fileno())
        self._sockets = [reserved]
        try:
            self.port: int = reserved.getsockname()[1]
            port_guard_process.drop_all(reserved)
            reserved.listen(1)
            port_guard_process.route_to_server(reserved, None)
            self._sockets.append(_bound(socket.AF_INET, own, self.port))
            self._sockets[-1].listen(_BACKLOG)
            self._sockets.append(_bound(socket.AF_INET, "0.0.0.0", 0))
            numbers = [each.fileno() for each in self._sockets]
            argv = [sys.executable, "-I", "-S", "-c", _START, *map(str, numbers), _ROOT]
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=numbers)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except OSError:
            self._close_sockets()
            raise

    def open_to(self, workers: Sequence[tuple[str, int]], token: str) -> list[str]:
        """Admit this user's processes on this host, and workers on other hosts that prove `token`.

        Returns, in rank order, the "address:port" at which this worker reaches each of `workers`.
        """
        outbound = self._sockets[-1]
        others = {_stand_in(rank): worker for rank, worker in enumerate(workers) if worker[0] != self._own}
        if others:
            outbound.listen(_BACKLOG)
        assert self._process.stdin
        with suppress(BrokenPipeError):  # if the process has died, nobody is admitted
            self._process.stdin.write(json.dumps([(self._own, self.port), token, others]).encode() + b"\n")
            self._process.stdin.flush()
        return [
            f"{_stand_in(rank)}:{outbound.getsockname()[1]}" if _stand_in(rank) in others else f"{host}:{port}"
            for rank, (host, port) in enumerate(workers)
        ]

    def check(self) -> None:
        """Refuse (78) a server that does not share the guarded port; call it once the server listens."""
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
        """Release the port. A process that is about to exit need not call it."""
        self._process.communicate()
        self._close_sockets()

    def _close_sockets(self) -> None:
        os.close(self._duplicate)
        for each in self._sockets:
            each.close()


def own_address(env: Mapping[str, str]) -> str:
    """Return the IPv4 address at which the other workers reach this one."""
    named = env.get("HOROVOD_GLOO_IFACE", "").split(",")[0]
    interface = named or network_interface_towards(rendezvous_of(env)[0])
    address = interface_address(interface)
    if address is None:
        raise no_interface(f"the network interface '{interface}' has no IPv4 address.")
    return address


def open_port_guard(env: Mapping[str, str], own: str) -> PortGuard | None:
    """Guard the port of TensorFlow's server. If the kernel cannot, refuse, or return None if the user allows that."""
    try:
        return PortGuard(own)
    except OSError as error:
        if env.get(OPEN_PORT_VARIABLE) == "1":
            return None
        raise Refusal(
            f"the port of TensorFlow's server, which runs what it is sent, cannot be guarded here ({error.strerror}).",
            fix=f"use strategy=horovod, or set {OPEN_PORT_VARIABLE}=1 if nobody else can reach this host.",
            code=ExitCode.UNSAFE,
        ) from error


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def parsed(endpoint: str) -> tuple[str, int]:
    """Split "address:port"; refuse (78) any other text."""
    address, _, port = endpoint.rpartition(":")
    try:
        if not 0 < int(port) < 65536:
            raise ValueError(port)
        return str(ipaddress.IPv4Address(address)), int(port)
    except ValueError as error:
        what = f"the rendezvous names {endpoint[:60]!r} for a worker, which is no address and port."
        raise Refusal(what, fix="start the workers again.", code=ExitCode.UNSAFE) from error


def refuse_public(hosts: Sequence[str], env: Mapping[str, str]) -> None:
    """Refuse (78) public addresses, unless the user asked for them."""
    public = [host for host in hosts if ipaddress.IPv4Address(host).is_global]
    if public and env.get(OPEN_PORT_VARIABLE) != "1":
        raise Refusal(
            f"the workers would talk over {public[0]}, a public address, and neither encrypt nor prove who they are.",
            fix="name a private interface in HOROVOD_GLOO_IFACE (tl-dist submit --interface), or set "
            f"{OPEN_PORT_VARIABLE}=1.",
            code=ExitCode.UNSAFE,
        )


def _stand_in(rank: int) -> str:
    """Return the loopback address at which the port guard process accepts connections for a worker on another host."""
    return socket.inet_ntoa((_STAND_INS + rank).to_bytes(4, "big"))


def _bound_to_all() -> socket.socket:
    """Bind a socket to a free port of all interfaces, IPv6 and IPv4 where the host has both, as gRPC does."""
    with suppress(OSError):
        return _bound(socket.AF_INET6, "::", 0)
    return _bound(socket.AF_INET, "0.0.0.0", 0)


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    """Bind a socket that shares its port with other sockets of this user."""
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((address, port))
    except OSError:
        bound.close()
        raise
    return bound
