"""Serve HTTP in one thread, to a thousand peers that open a connection for each small request.

By asyncio's sockets, not its streams: so each peer is judged the moment it is accepted.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future
from http import HTTPStatus
from typing import NamedTuple

Address = tuple[str, int]

REQUEST_TIMEOUT_S = 3.0
"""a connection is closed if its peer takes longer for the head, or for the next part of the body or of the answer"""
_MOST_AT_ONCE = 256  # new connections, before open ones get their turn
_HEAD_BYTES = 16 << 10
_READ_BYTES = 256 << 10
_SEND_BYTES = 16 << 10
_RETRY_ACCEPT_S = 0.05  # after the limit of open files was reached


class Answer(NamedTuple):
    """What a peer gets before its connection is closed."""

    status: int
    body: bytes = b""


class Request(NamedTuple):
    """The head of a request; `headers` by lower-case name, `trusted` if `trusts` returned True for the peer."""

    peer: Address
    trusted: bool
    method: str
    path: str
    headers: Mapping[str, str]


class HttpServer(ABC):
    """Listen on an address from construction to `close`, on a port that the kernel picks.

    Raises OSError for an address that this host does not have. A subclass's methods run in the server's one thread.
    """

    def __init__(self, address: str, name: str) -> None:
        self._listener = socket.create_server((address, 0), backlog=4096)
        self._listener.setblocking(False)
        self.endpoint: Address = self._listener.getsockname()
        self._closing: Future[None] = Future()
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and close every connection."""
        self._closing.set_result(None)
        self._thread.join()

    @abstractmethod
    def trusts(self, peer: Address) -> bool | None:
        """Return True for a trusted peer, None for one that must authenticate, False for one that is closed unread."""

    @abstractmethod
    def body_bytes(self, request: Request) -> int | Answer:
        """Return how many bytes of body to read, or an answer that refuses them."""

    @abstractmethod
    async def answer(self, request: Request, body: bytes) -> Answer:
        """Answer a complete request."""

    async def _serve(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        with self._listener:
            await asyncio.wrap_future(self._closing)
            asyncio.get_running_loop().remove_reader(
                self._listener
            )  # `asyncio.run` then ends all connections

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_MOST_AT_ONCE):
            try:
                connection, peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # too many open files: wait until some are closed
                loop.remove_reader(self._listener)
                loop.call_later(_RETRY_ACCEPT_S, loop.add_reader, self._listener, self._accept)
                return
            if (trusted := self.trusts(peer)) is False:
                connection.close()
                continue
            connection.setblocking(False)
            task = loop.create_task(self._converse(connection, peer, bool(trusted)))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _converse(self, connection: socket.socket, peer: Address, trusted: bool) -> None:
        """Receive one request and answer it; a peer that closes or takes too long gets no answer."""
        loop = asyncio.get_running_loop()
        with connection:
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S) as deadline:
                    status, body = await self._answer_to(connection, peer, trusted, deadline)
                    head = f"HTTP/1.0 {status} {HTTPStatus(status).phrase}\r\nContent-Length: {len(body)}\r\n\r\n"
                    left = memoryview(head.encode() + body)
                    while left:
                        deadline.reschedule(loop.time() + REQUEST_TIMEOUT_S)
                        await loop.sock_sendall(connection, left[:_SEND_BYTES])
                        left = left[_SEND_BYTES:]
            except OSError:  # TimeoutError is one
                pass
            except Exception:  # a bug of ours ends one connection, not the server
                traceback.print_exc()

    async def _answer_to(
        self, connection: socket.socket, peer: Address, trusted: bool, deadline: asyncio.Timeout
    ) -> Answer:
        received = b""
        while b"\r\n\r\n" not in received:
            if len(received) > _HEAD_BYTES:
                return Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            received += await _receive(connection)
        head, _, start = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        path, _, version = rest.rpartition(" ")
        pairs = [line.partition(":") for line in lines]
        if not path.startswith("/") or not version.startswith("HTTP/1.") or not all(c for _, c, _ in pairs):
            return Answer(HTTPStatus.BAD_REQUEST)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        request = Request(peer, trusted, method, path, headers)
        expected = self.body_bytes(request)
        if isinstance(expected, Answer):
            return expected
        body = bytearray(start)
        while len(body) < expected:
            deadline.reschedule(asyncio.get_running_loop().time() + REQUEST_TIMEOUT_S)
            body += await _receive(connection)
        deadline.reschedule(None)
        return await self.answer(request, bytes(body[:expected]))


async def _receive(connection: socket.socket) -> bytes:
    received = await asyncio.get_running_loop().sock_recv(connection, _READ_BYTES)
    if not received:
        raise ConnectionError("the peer has closed")
    return received
