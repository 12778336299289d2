"""Authenticate the clients of TensorFlow's server and relay their connections (see `port_guard`).

A process of its own, since TensorFlow blocks Python's other threads while it connects; it imports only the standard
library. When its parent ends, its standard input closes; then it exits, which closes every connection.
"""

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

from tl_dist.files.process import allow_many_open_files
from tl_dist.rendezvous.peers import user_of

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python has no names for them
_SO_ATTACH_REUSEPORT_CBPF = 51

# linux/filter.h: operations, and the offset at which a program finds the IP header of a packet.
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _IF_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
_IP_HEADER = 0xFFF00000
_IPV4_WITHOUT_OPTIONS = 0x45
_RESERVED, _SERVER = 0, 1  # the sockets that share the port, in the order in which they were bound

_SERVER_S = 0.05  # the server answers at once, or does not listen yet
_PROOF_S = 10.0
_DRAIN_S = 1.0
_READ_BYTES = 1 << 18
_RESET = struct.pack("@ii", 1, 0)  # for SO_LINGER: a refused connection is reset
_ESTABLISHED = 1  # linux/tcp.h
_NONCE_BYTES = 32  # a proof has as many

Address = tuple[str, int]
Handler = Callable[[socket.socket, Address], Awaitable[None]]


def route_to_server(reserved: socket.socket, source: Address | None) -> None:
    """Have the kernel give the server only connections from `source` to that same address, `reserved` all others."""
    rules: list[tuple[int, ...]] = []
    if source is not None:
        address = int.from_bytes(socket.inet_aton(source[0]), "big")
        for load, place, expected in (
            (_LOAD_BYTE, 0, _IPV4_WITHOUT_OPTIONS),
            (_LOAD_WORD, 12, address),
            (_LOAD_WORD, 16, address),
            (_LOAD_HALF, 20, source[1]),
        ):
            rules += [
                (load, 0, 0, _IP_HEADER + place),
                (_IF_EQUAL, 1, 0, expected),
                (_RETURN, 0, 0, _RESERVED),
            ]
        rules.append((_RETURN, 0, 0, _SERVER))
    _attach(reserved, _SO_ATTACH_REUSEPORT_CBPF, [*rules, (_RETURN, 0, 0, _RESERVED)])


def drop_all(reserved: socket.socket) -> None:
    """Have the kernel drop every packet that arrives at this socket."""
    _attach(reserved, _SO_ATTACH_FILTER, [(_RETURN, 0, 0, 0)])


def _attach(target: socket.socket, option: int, program: Sequence[tuple[int, ...]]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in program))
    target.setsockopt(socket.SOL_SOCKET, option, struct.pack("@HP", len(program), ctypes.addressof(code)))


def proof(token: str, side: str, endpoint: Address, nonces: bytes) -> bytes:
    """Return the HMAC that proves the token in one connection; `nonces` are the verifier's, then the prover's."""
    return hmac.digest(token.encode(), f"{side} {endpoint[0]}:{endpoint[1]} ".encode() + nonces, "sha256")


class Relay:
    """Relay clients to the server of the worker at `own`, and that worker's calls to `others`.

    `others` maps the stand-in address on this host to a worker on another one. Without a `token` no host is admitted.
    """

    def __init__(self, reserved: socket.socket, own: Address, token: str, others: Mapping[str, Address]) -> None:
        self._reserved, self._own, self._token, self._others = reserved, own, token, others
        # An address other than the worker's own, where this process listens: there the server's socket answers.
        self._inside = "127.0.0.2" if own[0] == "127.0.0.1" else "127.0.0.1"
        self._loop = asyncio.get_running_loop()
        self._filter_lock = asyncio.Lock()
        self._hosts = {host for host, _ in others.values()}
        self.clients: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket, handle: Handler) -> None:
        """Accept connections and give each to `handle`, which relays or refuses it."""
        listener.setblocking(False)
        while True:
            await asyncio.sleep(0)  # admitted connections go first, however many try to connect
            try:
                client, peer = await self._loop.sock_accept(listener)
            except OSError:  # out of file descriptors
                await asyncio.sleep(0.1)
                continue
            task = self._loop.create_task(_handled(client, handle(client, peer)))
            self.clients.add(task)
            task.add_done_callback(self.clients.discard)

    async def relay_inbound(self, client: socket.socket, peer: Address) -> None:
        """Relay to the server a process of this user on this host, or a worker on another one that has the token."""
        if peer[0] in self._hosts:
            admitted = await self._proves_token(client, self._own, "server", "client")
        else:
            admitted = _is_own(client, peer)
        if admitted:
            with await self._connect_to_server() as server:
                await _relay(client, server)

    async def relay_outbound(self, client: socket.socket, peer: Address) -> None:
        """Relay a process of this user to the worker on another host that it calls."""
        target = self._others.get(client.getsockname()[0])
        if target is not None and _is_own(client, peer):
            with _socket(self._own[0]) as worker:
                await self._loop.sock_connect(worker, target)
                if await self._proves_token(worker, target, "client", "server"):
                    await _relay(client, worker)

    async def _proves_token(self, other: socket.socket, endpoint: Address, *sides: str) -> bool:
        """Exchange proofs of the token; return True if the other side's is right. Raises TimeoutError."""
        own = secrets.token_bytes(_NONCE_BYTES)
        async with asyncio.timeout(_PROOF_S):
            await self._loop.sock_sendall(other, own)
            theirs = await self._receive(other)
            await self._loop.sock_sendall(other, proof(self._token, sides[0], endpoint, theirs + own))
            shown = await self._receive(other)
        right = proof(self._token, sides[1], endpoint, own + theirs)
        return bool(self._token) and hmac.compare_digest(shown, right)

    async def _receive(self, sender: socket.socket) -> bytes:
        received = b""
        while piece := await self._loop.sock_recv(sender, _NONCE_BYTES - len(received)):
            received += piece
            if len(received) == _NONCE_BYTES:
                return received
        raise ConnectionError

    async def _connect_to_server(self) -> socket.socket:
        """Return a connection to the server, as soon as it listens."""
        async with self._filter_lock:
            while True:
                connection = _socket(self._inside)
                with suppress(OSError):
                    try:
                        route_to_server(self._reserved, connection.getsockname())
                        connecting = self._loop.sock_connect(connection, (self._inside, self._own[1]))
                        await asyncio.wait_for(connecting, _SERVER_S)
                        return connection
                    finally:
                        route_to_server(self._reserved, None)  # before another process can get the port
                connection.close()


async def _handled(client: socket.socket, handling: Awaitable[None]) -> None:
    with client, suppress(OSError):  # TimeoutError is one
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        await handling


def _is_own(client: socket.socket, peer: Address) -> bool:
    """Return True for a process of this user on this host. Raises OSError where the kernel does not say."""
    own = user_of(peer, client.getsockname()) == os.geteuid()
    # If the client has closed, another socket may have its port, while data of the first one can still be read here.
    return own and client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED


def _socket(address: str) -> socket.socket:
    """Bind a socket to a free port, without SO_REUSEADDR, so that no other socket can bind that port."""
    bound = socket.socket()
    bound.setblocking(False)
    bound.bind((address, 0))
    return bound


async def _relay(client: socket.socket, server: socket.socket) -> None:
    """Copy bytes in both directions until both sides have closed."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(len(_RESET)))
    for side in (client, server):
        side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await asyncio.gather(_copy(client, server), _copy(server, client))


async def _copy(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while piece := await loop.sock_recv(source, _READ_BYTES):
            await loop.sock_sendall(sink, piece)
            await asyncio.sleep(0)  # neither call yields to other tasks unless it has to wait
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)  # forward the end of the stream, after all of its bytes


async def _run(sockets: Iterable[int]) -> None:
    reserved, inbound, outbound = (socket.socket(fileno=number) for number in sockets)
    line = sys.stdin.buffer.readline()
    if not line:
        return
    own, token, others = json.loads(line)
    relay = Relay(reserved, tuple(own), token, {stand_in: tuple(to) for stand_in, to in others.items()})
    parent_ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, parent_ended.set)
    servers = [asyncio.ensure_future(relay.serve(inbound, relay.relay_inbound))]
    if others:
        servers.append(asyncio.ensure_future(relay.serve(outbound, relay.relay_outbound)))
    await parent_ended.wait()
    for server in servers:
        server.cancel()
    if relay.clients:
        # The worker's last bytes may still be on their way.
        await asyncio.wait(relay.clients, timeout=_DRAIN_S)


def main() -> None:
    """Relay connections until the parent process ends."""
    allow_many_open_files()
    asyncio.run(_run(map(int, sys.argv[1:])))
