"""Choose and check the address and port of a worker that uses TensorFlow's own collectives. Imports no framework."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous import rank_layout
from tl_dist.rendezvous.barrier import rendezvous_of
from tl_dist.rendezvous.port_guard import PortGuard

OPEN_PORT_VARIABLE = "TL_DIST_OPEN_PORT"
"""environment variable; 1 allows public addresses, and kernels that cannot guard the port of TensorFlow's server"""


def own_address(env: Mapping[str, str]) -> str:
    """Return the IPv4 address at which the other workers reach this one."""
    named = env.get("HOROVOD_GLOO_IFACE", "").split(",")[0]
    interface = named or rank_layout.network_interface_towards(rendezvous_of(env)[0])
    address = rank_layout.interface_address(interface)
    if address is None:
        raise Refusal(
            f"the network interface '{interface}' has no IPv4 address.",
            fix="name the interface between the hosts in HOROVOD_GLOO_IFACE.",
            code=ExitCode.UNSAFE,
        )
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
        raise Refusal(
            f"the rendezvous names {endpoint[:60]!r} for a worker, which is no address and port.",
            fix="start the workers again.",
            code=ExitCode.UNSAFE,
        ) from error


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
