"""An HTTP server of one thread, for a thousand peers that connect anew for each small question.

A thread for each of them costs more than the answer. An answer may also come later, when there is one.
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
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple

REQUEST_TIMEOUT_S = 3.0
"""a peer that takes longer for a head, for the next part of a body or of the answer, is not waited for"""
_MOST_AT_ONCE = 256  # new connections, before others get their turn
_HEAD_BYTES = 16 << 10
_READ_BYTES = 256 << 10
_NO_ROOM_S = 0.05  # until the next look, where no more files may be open
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Answer(NamedTuple):
    """What a peer gets before its connection is closed."""

    status: int
    body: bytes = b""


class Later(NamedTuple):
    """The answer comes by `OneThreadServer.settle`, or is what `then` says after `wait_s`."""

    wait_s: float
    then: Callable[[], Answer]


class Request(NamedTuple):
    """The head of a request; `headers` by lower-case name."""

    peer: tuple[str, int]
    known: bool
    """what `knows` said of the peer"""
    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    peer: tuple[str, int]
    known: bool
    received: bytearray = field(default_factory=bytearray)
    request: Request | None = None
    body_bytes: int = 0
    later: Callable[[], Answer] | None = None  # of one that waits
    to_send: memoryview | None = None
    deadline: float = 0.0


class OneThreadServer(ABC):
    """Listens on an address from the moment it is made, on a port that the kernel picks; `close` ends it.

    Raises OSError for an address that this host does not have. All methods of a subclass run in one thread.
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
        """Listen no more, and let go of every peer."""
        os.close(self._wake)
        self._thread.join()

    @abstractmethod
    def knows(self, peer: tuple[str, int]) -> bool | None:
        """Whether a peer is one of ours; None where it must say so. Of another one not a byte is read."""

    @abstractmethod
    def body_bytes(self, request: Request) -> int | Answer:
        """How many bytes to expect after the head, or why not to."""

    @abstractmethod
    def answer(self, request: Request, body: bytes) -> Answer | Later:
        """What becomes of a request that is there as a whole."""

    def settle(self, answer: Answer) -> None:
        """Answer all who wait for a later answer."""
        for connection in [c for c in self._connections.values() if c.later is not None]:
            self._reply(connection, answer)

    def _serve(self) -> None:
        try:
            while True:
                for fd, _ in self._poll.poll(self._next_look_s()):
                    if fd == self._woken:
                        return
                    if fd == self._listener.fileno():
                        self._accept()
                    elif (connection := self._connections.get(fd)) is not None:
                        self._advance(connection)
                self._end_the_late(time.monotonic())
        finally:
            for connection in list(self._connections.values()):
                connection.socket.close()
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
                made, peer = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError:  # too many open files: until some are closed
                self._poll.unregister(self._listener)
                self._accept_again = time.monotonic() + _NO_ROOM_S
                return
            if (known := self.knows(peer)) is False:
                made.close()
                continue
            connection = self._connections[made.fileno()] = _Connection(made, peer, bool(known))
            self._advance(connection)  # mostly it is all there
            if connection.socket.fileno() >= 0:
                self._poll.register(made, select.EPOLLIN if connection.to_send is None else select.EPOLLOUT)
                if not connection.deadline:
                    self._limit(connection, REQUEST_TIMEOUT_S)

    def _advance(self, connection: _Connection) -> None:
        """Take what has come, or send what can be sent."""
        if connection.to_send is not None:
            return self._send(connection)
        try:
            while received := connection.socket.recv(_READ_BYTES, socket.MSG_DONTWAIT):
                if connection.later is not None:  # it has said all that it has to
                    return self._end(connection)
                connection.received += received
                if self._understood(connection):
                    return None
        except BlockingIOError:
            return None
        except OSError:
            pass
        except Exception:  # a fault of ours ends one answer, not the server
            traceback.print_exc()
        return self._end(connection)  # gone, perhaps in the middle of its request

    def _understood(self, connection: _Connection) -> bool:
        """Whether the request is as far as it is read, and is answered or waits."""
        if connection.request is None:
            head, end, rest = connection.received.partition(b"\r\n\r\n")
            if not end:
                if len(head) > _HEAD_BYTES:
                    self._reply(connection, Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
                return len(head) > _HEAD_BYTES
            if (request := _parsed(bytes(head), connection)) is None:
                self._reply(connection, Answer(HTTPStatus.BAD_REQUEST))
                return True
            expected = self.body_bytes(request)
            if isinstance(expected, Answer):
                self._reply(connection, expected)
                return True
            connection.request, connection.body_bytes, connection.received = request, expected, rest
        if len(connection.received) < connection.body_bytes:
            self._limit(connection, REQUEST_TIMEOUT_S)  # to the next part of it
            return False
        answer = self.answer(connection.request, bytes(connection.received[: connection.body_bytes]))
        if isinstance(answer, Later):
            connection.later = answer.then
            self._limit(connection, answer.wait_s)
        else:
            self._reply(connection, answer)
        return isinstance(answer, Answer)  # one that waits is listened to: it may go away

    def _reply(self, connection: _Connection, answer: Answer) -> None:
        head = f"HTTP/1.0 {answer.status} {HTTPStatus(answer.status).phrase}\r\nContent-Length: {len(answer.body)}"
        connection.to_send, connection.later = memoryview(head.encode() + b"\r\n\r\n" + answer.body), None
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        assert connection.to_send is not None
        try:
            connection.to_send = connection.to_send[connection.socket.send(connection.to_send, _FLAGS) :]
        except BlockingIOError:
            pass
        except OSError:
            return self._end(connection)
        if not connection.to_send:
            return self._end(connection)
        self._limit(connection, REQUEST_TIMEOUT_S)
        with suppress(FileNotFoundError):  # not yet registered
            self._poll.modify(connection.socket, select.EPOLLOUT)

    def _limit(self, connection: _Connection, seconds: float) -> None:
        connection.deadline = time.monotonic() + seconds
        heapq.heappush(self._deadlines, (connection.deadline, connection.socket.fileno()))

    def _end_the_late(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, fd = heapq.heappop(self._deadlines)
            connection = self._connections.get(fd)
            if connection is None or connection.deadline > now:  # ended, or given more time
                continue
            if connection.later is not None:
                self._reply(connection, connection.later())
            else:
                self._end(connection)

    def _end(self, connection: _Connection) -> None:
        self._connections.pop(connection.socket.fileno(), None)
        connection.socket.close()  # which also takes it from the poll


def _parsed(head: bytes, connection: _Connection) -> Request | None:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    path, _, version = rest.rpartition(" ")
    if not path.startswith("/") or not version.startswith("HTTP/1."):
        return None
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            return None
        headers[name.lower()] = value.strip()
    return Request(connection.peer, connection.known, method, path, headers)
