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


class OneThreadServer(ABC):
    """Listens on an address from the moment it is made, on a port that the kernel picks; `close` ends it.

    Raises OSError for an address that this host does not have. The methods of a subclass run in the one thread.
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
        for connection in [c for c in self._connections.values() if c.waits]:
            connection.reply(answer)

    def look_at(self, connection: _Connection, seconds: float) -> None:
        """See to a connection after that time, if it is still there."""
        heapq.heappush(self._deadlines, (time.monotonic() + seconds, connection.fd))

    def wait_to_send(self, connection: _Connection) -> None:
        """See to a connection as soon as its peer takes more."""
        with suppress(FileNotFoundError):  # not yet registered
            self._poll.modify(connection.fd, select.EPOLLOUT)

    def forget(self, connection: _Connection) -> None:
        """A connection ends, which also takes it from the poll."""
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
                self._see_to_the_late(time.monotonic())
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
            connection = self._connections[made.fileno()] = _Connection(self, made, peer, bool(known))
            connection.advance()  # mostly it is all there
            if connection.is_open:
                self._poll.register(connection.fd, select.EPOLLOUT if connection.sends else select.EPOLLIN)

    def _see_to_the_late(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, fd = heapq.heappop(self._deadlines)
            if (connection := self._connections.get(fd)) is not None:
                connection.see_to(now)


class _Connection:
    """One request of one peer, and its answer."""

    def __init__(
        self, server: OneThreadServer, made: socket.socket, peer: tuple[str, int], known: bool
    ) -> None:
        self.fd = made.fileno()
        self._server, self._socket, self._peer, self._known = server, made, peer, known
        self._received = bytearray()
        self._request: Request | None = None
        self._body_bytes = 0
        self._later: Callable[[], Answer] | None = None
        self._to_send: memoryview | None = None
        self._limit(REQUEST_TIMEOUT_S)

    @property
    def is_open(self) -> bool:
        return self._socket.fileno() >= 0

    @property
    def waits(self) -> bool:
        """Whether it is for a later answer."""
        return self._later is not None

    @property
    def sends(self) -> bool:
        return self._to_send is not None

    def advance(self) -> None:
        """Take what has come, or send what can be sent."""
        if self.sends:
            return self._send()
        try:
            while received := self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT):
                if self.waits:  # it has said all that it has to
                    return self.end()
                self._received += received
                if self._understood():
                    return None
        except BlockingIOError:
            return None
        except OSError:
            pass
        except Exception:  # a fault of ours ends one answer, not the server
            traceback.print_exc()
        return self.end()  # gone, perhaps in the middle of its request

    def see_to(self, now: float) -> None:
        """Its time may be over."""
        if self._deadline > now:  # it has been given more
            return
        if self._later is not None:
            self.reply(self._later())
        else:
            self.end()

    def reply(self, answer: Answer) -> None:
        """Send the answer, now or as the peer takes it, and then end."""
        head = f"HTTP/1.0 {answer.status} {HTTPStatus(answer.status).phrase}\r\nContent-Length: {len(answer.body)}"
        self._to_send, self._later = memoryview(head.encode() + b"\r\n\r\n" + answer.body), None
        self._send()

    def end(self) -> None:
        self._server.forget(self)
        self._socket.close()

    def _understood(self) -> bool:
        """Whether the request is as far as it is read, and is answered."""
        if self._request is None:
            head, end, rest = self._received.partition(b"\r\n\r\n")
            if not end and len(head) <= _HEAD_BYTES:
                return False
            expected = self._expected(bytes(head)) if end else Answer(431)
            if isinstance(expected, Answer):
                self.reply(expected)
                return True
            self._body_bytes, self._received = expected, rest
        if len(self._received) < self._body_bytes:
            self._limit(REQUEST_TIMEOUT_S)  # to the next part of it
            return False
        assert self._request is not None
        answer = self._server.answer(self._request, bytes(self._received[: self._body_bytes]))
        if isinstance(answer, Answer):
            self.reply(answer)
            return True
        self._later = answer.then
        self._limit(answer.wait_s)
        return False  # it is listened to, for it may go away

    def _expected(self, head: bytes) -> int | Answer:
        """How much comes after the head, or the answer to it."""
        first, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        path, _, version = rest.rpartition(" ")
        pairs = [line.partition(":") for line in lines]
        if not path.startswith("/") or not version.startswith("HTTP/1.") or not all(c for _, c, _ in pairs):
            return Answer(400)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        self._request = Request(self._peer, self._known, method, path, headers)
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
        self._limit(REQUEST_TIMEOUT_S)
        self._server.wait_to_send(self)

    def _limit(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._server.look_at(self, seconds)
