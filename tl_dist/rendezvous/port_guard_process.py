"""Stands at the port of TensorFlow's server, asks who comes, and passes on what those say who may enter.

A process of its own, since TensorFlow keeps Python's other threads waiting while it connects; it imports no more than
the standard library. The end of its parent closes its standard input, which ends it, and its end every connection.
"""

from __future__ import annotations

import asyncio
import ctypes
import hmac
import json
import os
import secrets
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from tl_dist.files.descriptors import allow_many_open_files
from tl_dist.rendezvous.peers import user_of

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python has no names for them
_SO_ATTACH_REUSEPORT_CBPF = 51

# linux/filter.h: operations, and where a program finds the IP header of a packet.
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _IF_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
_IP_HEADER = 0xFFF00000
_IPV4_WITHOUT_OPTIONS = 0x45
_MINE, _THE_SERVERS = 0, 1  # sockets of one port, in the order in which they came

_SERVER_S = 0.05  # the server answers at once, or does not listen yet
_PROOF_S = 10.0
_REST_S = 1.0
_PIECE = 1 << 18  # bytes
_RESET = struct.pack("@ii", 1, 0)  # for SO_LINGER: a connection that is refused breaks off
_ESTABLISHED = 1  # linux/tcp.h
_NONCE = 32  # bytes, as an answer has

Address = tuple[str, int]
Visit = Callable[[socket.socket, Address], Awaitable[None]]


def let_in(shut: socket.socket, source: Address | None) -> None:
    """Have the kernel give connections from `source` to the same address to the server, and all others to `shut`."""
    rules: list[tuple[int, ...]] = []
    if source is not None:
        address = int.from_bytes(socket.inet_aton(source[0]), "big")
        for load, place, expected in (
            (_LOAD_BYTE, 0, _IPV4_WITHOUT_OPTIONS),
            (_LOAD_WORD, 12, address),
            (_LOAD_WORD, 16, address),
            (_LOAD_HALF, 20, source[1]),
        ):
            rules += [(load, 0, 0, _IP_HEADER + place), (_IF_EQUAL, 1, 0, expected), (_RETURN, 0, 0, _MINE)]
        rules.append((_RETURN, 0, 0, _THE_SERVERS))
    _attach(shut, _SO_ATTACH_REUSEPORT_CBPF, [*rules, (_RETURN, 0, 0, _MINE)])


def drop_all(shut: socket.socket) -> None:
    """Have the kernel drop every packet that comes to this socket."""
    _attach(shut, _SO_ATTACH_FILTER, [(_RETURN, 0, 0, 0)])


def _attach(shut: socket.socket, option: int, program: Sequence[tuple[int, ...]]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    shut.setsockopt(socket.SOL_SOCKET, option, struct.pack("@HP", len(program), ctypes.addressof(code)))


def proof(token: str, side: str, endpoint: Address, nonces: bytes) -> bytes:
    """Return what shows the token, in one connection to one worker; `nonces` are the other's and the own."""
    return hmac.digest(token.encode(), f"{side} {endpoint[0]}:{endpoint[1]} ".encode() + nonces, "sha256")


class Doorkeeper:
    """Answers at the port of the worker at `own`, and at the way out for its calls to `others`.

    These are workers of other hosts, by the address of this one that stands for each; with no `token` none gets in.
    """

    def __init__(self, shut: socket.socket, own: Address, token: str, others: Mapping[str, Address]) -> None:
        self._shut, self._own, self._token, self._others = shut, own, token, others
        # Another address than the workers', so that the server's own socket answers there.
        self._inside = "127.0.0.2" if own[0] == "127.0.0.1" else "127.0.0.1"
        self._loop = asyncio.get_running_loop()
        self._one_rule = asyncio.Lock()
        self._hosts = {host for host, _ in others.values()}
        self.visits: set[asyncio.Task[None]] = set()

    async def serve(self, listening: socket.socket, visit: Visit) -> None:
        """Take connections, each of which `visit` passes on, or not."""
        listening.setblocking(False)
        while True:
            await asyncio.sleep(0)  # others come first, however many knock
            try:
                visitor, peer = await self._loop.sock_accept(listening)
            except OSError:  # no descriptor is left
                await asyncio.sleep(0.1)
                continue
            task = self._loop.create_task(_taken(visitor, visit(visitor, peer)))
            self.visits.add(task)
            task.add_done_callback(self.visits.discard)

    async def at_the_door(self, visitor: socket.socket, peer: Address) -> None:
        """Lead to the server a process of this user on this host, and a worker elsewhere that has the token."""
        if peer[0] in self._hosts:
            may = await self._proved(visitor, self._own, "server", "client")
        else:
            may = _is_own(visitor, peer)
        if may:
            with await self._server() as server:
                await _joined(visitor, server)

    async def at_the_way_out(self, visitor: socket.socket, peer: Address) -> None:
        """Lead a process of this user to the worker of another host that it calls."""
        there = self._others.get(visitor.getsockname()[0])
        if there is not None and _is_own(visitor, peer):
            with _socket(self._own[0]) as worker:
                await self._loop.sock_connect(worker, there)
                if await self._proved(worker, there, "client", "server"):
                    await _joined(visitor, worker)

    async def _proved(self, other: socket.socket, endpoint: Address, *sides: str) -> bool:
        """Whether the other side has the token, to which this one shows the same. Raises TimeoutError."""
        own = secrets.token_bytes(_NONCE)
        async with asyncio.timeout(_PROOF_S):
            await self._loop.sock_sendall(other, own)
            theirs = await self._received(other)
            await self._loop.sock_sendall(other, proof(self._token, sides[0], endpoint, theirs + own))
            shown = await self._received(other)
        right = proof(self._token, sides[1], endpoint, own + theirs)
        return bool(self._token) and hmac.compare_digest(shown, right)

    async def _received(self, sender: socket.socket) -> bytes:
        received = b""
        while piece := await self._loop.sock_recv(sender, _NONCE - len(received)):
            received += piece
            if len(received) == _NONCE:
                return received
        raise ConnectionError

    async def _server(self) -> socket.socket:
        """A connection to the server, once it listens."""
        async with self._one_rule:
            while True:
                made = _socket(self._inside)
                with suppress(OSError):
                    try:
                        let_in(self._shut, made.getsockname())
                        there = self._loop.sock_connect(made, (self._inside, self._own[1]))
                        await asyncio.wait_for(there, _SERVER_S)
                        return made
                    finally:
                        let_in(self._shut, None)  # before the port can be somebody else's
                made.close()


async def _taken(visitor: socket.socket, visit: Awaitable[None]) -> None:
    with visitor, suppress(OSError):  # which a time-out is as well
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        await visit


def _is_own(visitor: socket.socket, peer: Address) -> bool:
    """Whether a process of this user, on this host, has the other end. Raises OSError where the kernel does not say."""
    own = user_of(peer, visitor.getsockname()) == os.geteuid()
    # Of a connection that has ended another one may have the ports, and what it brought is still there to be read.
    return own and visitor.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED


def _socket(address: str) -> socket.socket:
    """A socket bound to a free port, without SO_REUSEADDR, so that nobody can bind the port beside it."""
    made = socket.socket()
    made.setblocking(False)
    made.bind((address, 0))
    return made


async def _joined(one: socket.socket, other: socket.socket) -> None:
    """Pass on what comes from either, until both have ended."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(len(_RESET)))
    for each in (one, other):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await asyncio.gather(_passed_on(one, other), _passed_on(other, one))


async def _passed_on(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while piece := await loop.sock_recv(source, _PIECE):
            await loop.sock_sendall(sink, piece)
            await asyncio.sleep(0)  # neither call waits for others where it need not wait itself
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)  # the end is passed on as well, after all that came before it


async def _run(sockets: Iterable[int]) -> None:
    shut, door, way_out = (socket.socket(fileno=number) for number in sockets)
    told = sys.stdin.buffer.readline()
    if not told:
        return
    own, token, others = json.loads(told)
    keeper = Doorkeeper(shut, tuple(own), token, {each: tuple(there) for each, there in others.items()})
    parent_ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, parent_ended.set)
    serving = [asyncio.ensure_future(keeper.serve(door, keeper.at_the_door))]
    if others:
        serving.append(asyncio.ensure_future(keeper.serve(way_out, keeper.at_the_way_out)))
    await parent_ended.wait()
    for each in serving:
        each.cancel()
    if keeper.visits:
        await asyncio.wait(keeper.visits, timeout=_REST_S)  # what the worker said last is still on its way


def main() -> None:
    """Stand there, until nobody needs that any more."""
    allow_many_open_files()
    asyncio.run(_run(map(int, sys.argv[1:])))
