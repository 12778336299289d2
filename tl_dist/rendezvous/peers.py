"""Ask the kernel which user has the other end of a connection, if that is a socket of this host."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

Address = tuple[str, int]  # IPv4

# sock_diag(7), linux/inet_diag.h: finds one socket by its two addresses, by hash, in some 10 microseconds. Reading
# /proc/net/tcp takes milliseconds when thousands of sockets are open, as they are while workers connect.
_NETLINK_SOCK_DIAG = 4
_BY_FAMILY = 20
_NO_COOKIE = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI 2s2s16s16s III")
_ERROR = 2
_STATE = 16 + 1  # after the header: the family, the state
_USER = 16 + 4 + 48 + 12  # header; family, state, timer, retransmits; addresses; expires, queues

_CONNECTING = 2
LISTENING = "0A"  # of a socket in `rows`
_WORD = struct.Struct("=I")  # as the tables show addresses
_MAPPED = "".join(f"{word:08X}" for (word,) in _WORD.iter_unpack(bytes(10) + b"\xff\xff"))  # IPv4 in IPv6
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))  # an IPv6 socket may talk IPv4


def user_of(peer: Address, here: Address) -> int | None:
    """Return the user that has the socket at `peer` of a connection to `here`; None if no process of this host has it.

    Then the peer is on another host, or has closed its end: what it sent before may be anybody's.
    Raises OSError where the kernel does not say.
    """
    try:
        return _by_netlink(peer, here)
    except OSError:  # a kernel without inet_diag, a container without netlink
        return _by_table(peer, here)


def _by_netlink(peer: Address, here: Address) -> int | None:
    ports = [struct.pack("!H", port) for _, port in (peer, here)]
    addresses = [socket.inet_aton(address) for address, _ in (peer, here)]
    body = _REQUEST.pack(
        socket.AF_INET, socket.IPPROTO_TCP, 0, 0, _NO_COOKIE, *ports, *addresses, 0, _NO_COOKIE, _NO_COOKIE
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, 1, 0, 0) + body)
        answer = kernel.recv(8192, socket.MSG_DONTWAIT)  # the kernel has answered when `send` returns
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind == _ERROR:
        (number,) = struct.unpack_from("=i", answer, _HEADER.size)
        if -number == errno.ENOENT:
            return None
        raise OSError(-number, os.strerror(-number))
    user, inode = struct.unpack_from("=II", answer, _USER)
    # In these states the peer has closed, and another socket has its port.
    if answer[_STATE] in (_CONNECTING, int(LISTENING, 16)):
        return None
    # Without an inode no process has the socket any more, and its user reads 0.
    return user if inode else None


def _by_table(peer: Address, here: Address) -> int | None:
    ends = [
        {f"{prefix}{_WORD.unpack(socket.inet_aton(address))[0]:08X}:{port:04X}" for prefix in ("", _MAPPED)}
        for address, port in (peer, here)
    ]
    for _, local, remote, state, _, _, _, user, _, inode, *_ in rows():
        if local in ends[0] and remote in ends[1] and int(state, 16) != _CONNECTING:
            return int(user) if inode != "0" else None
    return None


def rows() -> Iterator[list[str]]:
    """Yield the TCP sockets of this host, by the kernel's own columns. Raises OSError where it shows no table."""
    has_table = False
    for table in _TABLES:
        with suppress(FileNotFoundError), table.open() as lines:
            has_table = next(lines, "") != ""
            yield from (line.split() for line in lines)
    if not has_table:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(_TABLES[0]))
