"""Another user of this host at the ports of a run: `python stranger.py SECONDS VICTIM PORTS`.

Says and exits 1 as soon as anything answers, or is to be had, else exits 0 after the time, or at SIGTERM. PORTS, by
commas: where it tries; none: at every port at which the user VICTIM listens then.
"""

import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from random import choice, shuffle

NOBODY = 65534
HERE = ("127.0.0.1", "127.0.0.2", "127.0.0.5", "127.1.0.0", "127.1.0.1")
ANYWHERE = "0.0.0.0"
SAYS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")  # a client of gRPC
CONNECTING, STANDING, WAITING, LISTENING = "02", "01", "06", "0A"
FREEBIND = 15  # linux/in.h; asks for no privilege
REUSES = ((), (socket.SO_REUSEADDR,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT))
Address = tuple[str, int]


def rows() -> Iterator[tuple[Address, Address, str, int]]:
    """Both ends, the state and the user of each socket that the kernel lists."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(FileNotFoundError), open(table) as lines:
            next(lines, "")
            for line in lines:
                _, here, there, state, _, _, _, user, *_ = line.split()
                yield _address(here), _address(there), state, int(user)


def _address(shown: str) -> Address:
    address, _, port = shown.rpartition(":")
    return socket.inet_ntoa(struct.pack("=I", int(address[-8:], 16))), int(port, 16)


def answers(source: Address, port: int, where: str, reuse: tuple[int, ...], *, user: int | None = None) -> bytes:
    """What comes back from there to this user, or to `user`, if anything does."""
    with suppress(OSError), socket.socket() as knocking:
        if user is not None:
            os.fchown(knocking.fileno(), user, -1)  # as if that user had made it
        for option in reuse:
            knocking.setsockopt(socket.SOL_SOCKET, option, 1)
        knocking.setsockopt(socket.IPPROTO_IP, FREEBIND, 1)
        knocking.settimeout(0.03)
        knocking.bind(source)
        knocking.connect((where, port))
        knocking.settimeout(1)
        knocking.sendall(SAYS)
        return knocking.recv(100)
    return b""


def takes(port: int, where: str, victim: int) -> bool:
    """Whether this user could stand beside one who listens."""
    with suppress(OSError), socket.socket() as beside:
        beside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        beside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        beside.bind((where, port))
        beside.listen()
        return any(here[1] == port and state == LISTENING and user == victim for here, _, state, user in rows())
    return False


def main() -> None:
    seconds, victim = float(sys.argv[1]), int(sys.argv[2])
    only = {int(port) for port in sys.argv[3].split(",") if port}
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    end = time.monotonic() + seconds
    tries = knocks = 0
    while time.monotonic() < end and not told:
        seen = list(rows())
        listening = {
            here
            for here, _, state, user in seen
            if state == LISTENING and user == victim and (not only or here[1] in only)
        }
        ports = only or {port for _, port in listening}
        places = sorted({*HERE, *(address for address, _ in listening)} - {ANYWHERE})
        # The very port from which the victim comes, as long as the port may be open to it and after.
        origins = [
            (source, here[1], there[1])
            for here, there, state, user in seen
            if there[1] in ports and state in (CONNECTING, STANDING, WAITING) and user in (victim, 0)
            for source in {here[0], there[0], *HERE[:2]}
        ]
        shuffle(origins)
        for source, origin, port in origins[:20]:
            tries += 1
            where = choice(places)
            if said := answers((source, origin), port, where, choice(REUSES)):
                sys.exit(f"from {source}:{origin} {where}:{port} answers {said!r}")
        for port in ports:
            knocks += 1
            source, where = choice(places), choice(places)
            if said := answers((source, 0), port, where, ()):
                sys.exit(f"from {source} {where}:{port} answers {said!r}")
        for address, port in listening:
            for where in {address, ANYWHERE, choice(places) if address == ANYWHERE else address}:
                if takes(port, where, victim):
                    sys.exit(f"{where}:{port} is to be had")
    print(f"{tries} tries from ports of the victim, {knocks} others")


if __name__ == "__main__":
    main()
