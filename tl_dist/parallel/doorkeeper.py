"""Lets connections of this user through a guarded port: `python -I -S doorkeeper.py SOCKET PORT OWN OTHER...`.

A process of its own, since TensorFlow keeps Python's other threads waiting while it connects. The end of its parent
closes its standard input, which ends it. It uses the standard library alone, and is started by its path, in some 20 ms.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python has no names for them
_SO_ATTACH_REUSEPORT_CBPF = 51

# linux/filter.h: operations, and where a program finds the IP header of a packet.
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _IF_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
_IP_HEADER = 0xFFF00000
_SOURCE_ADDRESS, _SOURCE_PORT = _IP_HEADER + 12, _IP_HEADER + 20
_IPV4_WITHOUT_OPTIONS = 0x45
_MINE, _THE_SERVERS = 0, 1  # sockets of one port, in the order in which they came

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_OPENING = "02"
LISTENING = "0A"
_LOOK_S = 0.25  # a look costs some 5 ms, and the packet comes again after a second
_LATER_LOOK_S = 1.0  # once the workers are connected; gRPC may close what has been idle, and connect again
_BUSY_S = 60.0

Instruction = tuple[int, int, int, int]


class Row(NamedTuple):
    """A socket of this host, as the kernel lists it."""

    table: str
    port: int
    peer_port: int
    state: str
    user: int


def rows() -> Iterator[Row]:
    """TCP sockets of both families."""
    for table in _TABLES:
        with suppress(FileNotFoundError), open(table) as lines:
            next(lines, "")
            for line in lines:
                _, local, remote, state, _, _, _, user, *_ = line.split()
                port, peer_port = (int(end.rpartition(":")[2], 16) for end in (local, remote))
                yield Row(table, port, peer_port, state, int(user))


def let_in(listening: socket.socket, rules: Sequence[Instruction]) -> None:
    """Have the kernel give connections that a rule takes to the server, and all others to `listening`."""
    only_ipv4 = [
        (_LOAD_BYTE, 0, 0, _IP_HEADER),
        (_IF_EQUAL, 1, 0, _IPV4_WITHOUT_OPTIONS),
        _give(_MINE),
    ]
    _attach(listening, _SO_ATTACH_REUSEPORT_CBPF, [*only_ipv4, *rules, _give(_MINE)])


def drop_all(listening: socket.socket) -> None:
    """Have the kernel drop every packet that comes to this socket."""
    _attach(listening, _SO_ATTACH_FILTER, [_give(0)])


def if_from(address: str, ports: Sequence[int] | None = None) -> Iterator[Instruction]:
    """Let a host in; with `ports` only what comes from these."""
    (number,) = struct.unpack("!I", socket.inet_aton(address))
    yield (_LOAD_WORD, 0, 0, _SOURCE_ADDRESS)
    if ports is None:
        yield (_IF_EQUAL, 0, 1, number)
        yield _give(_THE_SERVERS)
        return
    yield (_IF_EQUAL, 1, 0, number)
    yield _give(_MINE)
    yield (_LOAD_HALF, 0, 0, _SOURCE_PORT)
    for port in ports:
        yield (_IF_EQUAL, 0, 1, port)
        yield _give(_THE_SERVERS)


def _give(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _attach(listening: socket.socket, option: int, program: Sequence[Instruction]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    listening.setsockopt(socket.SOL_SOCKET, option, struct.pack("@HP", len(program), ctypes.addressof(code)))


def main() -> None:
    """Look up who knocks from this host, until nobody needs that any more."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # they are for the worker
    listening = socket.socket(fileno=int(sys.argv[1]))
    served, own, others = int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    rules = [rule for address in others for rule in if_from(address)]
    known: set[int] = set()
    busy_until = time.monotonic() + _BUSY_S
    while True:
        pause_s = _LOOK_S if time.monotonic() < busy_until else _LATER_LOOK_S
        if select.select([sys.stdin], [], [], pause_s)[0]:
            return
        knocking = {
            row.port
            for row in rows()
            if row.state == _OPENING and row.peer_port == served and row.user == os.geteuid()
        }
        if knocking != known:
            known = knocking
            let_in(listening, [*rules, *if_from(own, sorted(known))])


if __name__ == "__main__":
    main()
