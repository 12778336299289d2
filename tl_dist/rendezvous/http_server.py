"""Serve HTTP in one thread, to a thousand peers that open a connection for each small request.

A thread for each connection would cost more than its answer. An answer may be deferred until it is known.
"""

from __future__ import annotations

import heapq
import os
import select
import socket
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import NamedTuple

REQUEST_TIMEOUT_S = 3.0
"""a connection is closed if its peer takes longer for the head, or for the next part of the body or of the answer"""
_MOST_AT_ONCE = 256  # new connections, before open ones get their turn
_HEAD_BYTES = 16 << 10
_READ_BYTES = 256 << 10
_RETRY_ACCEPT_S = 0.05  # after the limit of open files was reached
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Answer(NamedTuple):
    """What a peer gets before its connection is closed."""

    status: int
    body: bytes = b""


class Deferred(NamedTuple):
    """Defer the answer to `HttpServer.answer_waiting`, or to what `then` returns after `wait_s`."""

    wait_s: float
    then: Callable[[], Answer]


class Request(NamedTuple):
    """The head of a request; `headers` by lower-case name."""

    peer: tuple[str, int]
    trusted: bool
    """True if `trusts` returned True for the peer"""
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
        self.endpoint: tuple[str, int] = self._listener.getsockname()
        self._woken, self._wake = os.pipe()
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(self._woken, select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._accept_again = 0.0
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and close every connection."""
        os.close(self._wake)
        self._thread.join()

    @abstractmethod
    def trusts(self, peer: tuple[str, int]) -> bool | None:
        """Return True for a trusted peer, None for one that must authenticate, False for one that is closed unread."""

    @abstractmethod
    def body_bytes(self, request: Request) -> int | Answer:
        """Return how many bytes of body to read, or an answer that refuses them."""

    @abstractmethod
    def answer(self, request: Request, body: bytes) -> Answer | Deferred:
        """Answer a complete request, now or later."""

    def answer_waiting(self, answer: Answer) -> None:
        """Send `answer` to all peers with a deferred answer."""
        for connection in [c for c in self._connections.values() if c.is_waiting]:
            connection.reply(answer)

    def check_after(self, connection: _Connection, seconds: float) -> None:
        """Check the deadline of a connection after that time, if it is still open."""
        heapq.heappush(self._deadlines, (time.monotonic() + seconds, connection.fd))

    def wait_to_send(self, connection: _Connection) -> None:
        """Call `advance` as soon as the peer can receive more."""
        with suppress(FileNotFoundError):  # not yet registered
            self._poll.modify(connection.fd, select.EPOLLOUT)

    def forget(self, connection: _Connection) -> None:
        """Forget a connection that is about to close, which removes it from the poll."""
        self._connections.pop(connection.fd, None)

    def _serve(self) -> None:
        try:
            while True:
                for fd, _ in self._poll.poll(self._next_look_s()):
                    if fd == self._woken:
                        return
                    if fd == self._listener.fileno():
                        self._accept()
                    elif (connection := self._connections.get(fd)) is not None:
                        connection.advance()
                self._check_deadlines(time.monotonic())
        finally:
            for connection in list(self._connections.values()):
                connection.end()
            self._listener.close()
            self._poll.close()
            os.close(self._woken)

    def _next_look_s(self) -> float:
        now = time.monotonic()
        if self._accept_again and now >= self._accept_again:
            self._accept_again = 0.0
            self._poll.register(self._listener, select.EPOLLIN)
        next_at = min(
            [at for at, _ in self._deadlines[:1]] + [at for at in [self._accept_again] if at], default=-1
        )
        return max(0.001, next_at - now) if next_at >= 0 else -1

    def _accept(self) -> None:
        for _ in range(_MOST_AT_ONCE):
            try:
                accepted, peer = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError:  # too many open files: wait until some are closed
                self._poll.unregister(self._listener)
                self._accept_again = time.monotonic() + _RETRY_ACCEPT_S
                return
            if (trusted := self.trusts(peer)) is False:
                accepted.close()
                continue
            connection = _Connection(self, accepted, peer, bool(trusted))
            self._connections[connection.fd] = connection
            connection.advance()  # most requests have arrived as a whole
            if connection.is_open:
                self._poll.register(
                    connection.fd, select.EPOLLOUT if connection.is_sending else select.EPOLLIN
                )

    def _check_deadlines(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, fd = heapq.heappop(self._deadlines)
            if (connection := self._connections.get(fd)) is not None:
                connection.check_deadline(now)


class _Connection:
    """One request of one peer, and its answer."""

    def __init__(
        self, server: HttpServer, accepted: socket.socket, peer: tuple[str, int], trusted: bool
    ) -> None:
        self.fd = accepted.fileno()
        self._server, self._socket, self._peer, self._trusted = server, accepted, peer, trusted
        self._received = bytearray()
        self._request: Request | None = None
        self._body_bytes = 0
        self._later: Callable[[], Answer] | None = None
        self._to_send: memoryview | None = None
        self._set_deadline(REQUEST_TIMEOUT_S)

    @property
    def is_open(self) -> bool:
        return self._socket.fileno() >= 0

    @property
    def is_waiting(self) -> bool:
        """True while its answer is deferred."""
        return self._later is not None

    @property
    def is_sending(self) -> bool:
        return self._to_send is not None

    def advance(self) -> None:
        """Receive what has arrived, or send what can be sent."""
        if self.is_sending:
            return self._send()
        try:
            while received := self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT):
                if self.is_waiting:  # its request was complete
                    return self.end()
                self._received += received
                if self._answered():
                    return None
        except BlockingIOError:
            return None
        except OSError:
            pass
        except Exception:  # a bug of ours ends one connection, not the server
            traceback.print_exc()
        return self.end()  # the peer has closed, perhaps in the middle of its request

    def check_deadline(self, now: float) -> None:
        """Close the connection if its deadline has passed, or send its deferred answer."""
        if self._deadline > now:  # the deadline has been extended
            return
        if self._later is not None:
            self.reply(self._later())
        else:
            self.end()

    def reply(self, answer: Answer) -> None:
        """Send the answer, as fast as the peer receives it, then close."""
        head = f"HTTP/1.0 {answer.status} {HTTPStatus(answer.status).phrase}\r\nContent-Length: {len(answer.body)}"
        self._to_send, self._later = memoryview(head.encode() + b"\r\n\r\n" + answer.body), None
        self._send()

    def end(self) -> None:
        """Close the connection."""
        self._server.forget(self)
        self._socket.close()

    def _answered(self) -> bool:
        """Parse what has been received; return True if the request was answered, False to read on."""
        if self._request is None:
            head, end, rest = self._received.partition(b"\r\n\r\n")
            if not end and len(head) <= _HEAD_BYTES:
                return False
            expected = self._parse_head(bytes(head)) if end else Answer(431)
            if isinstance(expected, Answer):
                self.reply(expected)
                return True
            self._body_bytes, self._received = expected, rest
        if len(self._received) < self._body_bytes:
            self._set_deadline(REQUEST_TIMEOUT_S)  # to the next part of it
            return False
        assert self._request is not None
        answer = self._server.answer(self._request, bytes(self._received[: self._body_bytes]))
        if isinstance(answer, Answer):
            self.reply(answer)
            return True
        self._later = answer.then
        self._set_deadline(answer.wait_s)
        return False  # read on, to notice if the peer closes

    def _parse_head(self, head: bytes) -> int | Answer:
        """Return the length of the body, or an answer to the head."""
        first, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        path, _, version = rest.rpartition(" ")
        pairs = [line.partition(":") for line in lines]
        if not path.startswith("/") or not version.startswith("HTTP/1.") or not all(c for _, c, _ in pairs):
            return Answer(400)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        self._request = Request(self._peer, self._trusted, method, path, headers)
        return self._server.body_bytes(self._request)

    def _send(self) -> None:
        assert self._to_send is not None
        try:
            self._to_send = self._to_send[self._socket.send(self._to_send, _FLAGS) :]
        except BlockingIOError:
            pass
        except OSError:
            return self.end()
        if not self._to_send:
            return self.end()
        self._set_deadline(REQUEST_TIMEOUT_S)
        self._server.wait_to_send(self)

    def _set_deadline(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._server.check_after(self, seconds)
