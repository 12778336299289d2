"""Serve the rendezvous of a run's workers: the key-value store through which Horovod's Gloo finds its peers.

Horovod ships a server (horovod/runner/http/http_server.py, 0.28.1). This one speaks the same protocol, but listens
on one address instead of all, on a port that the kernel picks, and accepts only what the plan's workers send:

- A peer on this host must belong to the same user. The kernel tells, since all of loopback has one address.
- A peer on another host must first show the job's token, which `barrier` does for each worker. Horovod's own client
  knows no token: its requests are accepted from any address that has shown it.
- Scopes, keys and sizes must be among the plan's own.

The protocol, from horovod/common/gloo/http_store.cc and gloo_context.cc:

- PUT /SCOPE/KEY stores the body: a worker's host name as `rank_RANK`, its addresses as `RANK`. A worker that got no
  answer sends it again, so a value may be overwritten.
- GET /SCOPE/KEY answers 200 with the value, or 404 until there is one: workers poll every 10 ms. They retry on any
  other status.
- DELETE /SCOPE/RANK reports that RANK is connected to all its peers of that scope. After the last one the scope
  is cleared, so that the same workers can connect again. The scopes and their sizes follow from the plan:
  `global`, one `local_HOST` per host, one `cross_K` per local rank; RANK is the rank within the scope.
- A process set uses scopes of the same names with its digest appended. tl_dist makes none, but Horovod has one of all
  workers, which connect a second time for it.

Two requests are our own:

- GET /ready answers 200 with the values of all ranks, one a line, once all have come.
- GET /ready/absent answers with the ranks that are missing, when all have come or after as many seconds as the header
  Wait says. A thousand workers that polled each other's keys one by one would ask a million times.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import os
import secrets
import socket
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from typing import NamedTuple

from tl_dist.files import limits
from tl_dist.files.process import allow_many_open_files
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous import rank_layout
from tl_dist.rendezvous.barrier import ABSENT, MOST_NAMED, READY, TOKEN_VARIABLE, WAIT_S, authorization
from tl_dist.rendezvous.peers import Address, user_of
from tl_dist.rendezvous.rank_layout import Plan

_PROCESS_SET = "_process_set_hash_"
_ALL, _MISSING = f"/{READY}", f"/{READY}/{ABSENT}"  # paths of our own requests
REQUEST_TIMEOUT_S = 3.0
"""a connection is closed if its peer takes longer for the head, or for the next part of the body or of the answer"""
_MOST_AT_ONCE = 256  # new connections, before open ones get their turn
_HEAD_BYTES = 16 << 10
_READ_BYTES = 256 << 10
_SEND_BYTES = 16 << 10
_RETRY_ACCEPT_S = 0.05  # after the limit of open files was reached


class _Request(NamedTuple):
    """The head of a request; `headers` by lower-case name."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def scope_and_key(self) -> tuple[str, str]:
        scope, _, key = self.path.removeprefix("/").rpartition("/")
        return scope, key


class _Answer(NamedTuple):
    """What a peer gets before its connection is closed."""

    status: int
    body: bytes = b""


class Rendezvous:
    """Serve the workers of `plan`, by a thread, until the end of a `with` block, however often they start again.

    `address` is the IPv4 address of this host that every worker can reach, loopback if all of them are here.
    Refuses (73) an address that this host does not have.
    """

    def __init__(self, plan: Plan, address: str) -> None:
        self._plan = list(plan)
        self._address = address
        self._token = secrets.token_hex(16)
        self._authorization = authorization(self._token).encode()
        self._known: set[str] = set()  # addresses of other hosts that have shown the token
        self._values: dict[str, dict[str, bytes]] = {}
        self._left: dict[str, set[str]] = {}
        self._members: dict[str, set[str]] = {}
        self._process_set = ""  # the digest of the one that there is
        self._all_ready = asyncio.Event()
        for placement in rank_layout.placements_of(plan):
            for scope, rank in (
                ("global", placement.rank),
                (READY, placement.rank),
                (f"local_{placement.host}", placement.local_rank),
                (f"cross_{placement.local_rank}", placement.cross_rank),
            ):
                self._members.setdefault(scope, set()).add(str(rank))
        allow_many_open_files()  # each worker keeps a connection while it waits
        try:
            self._listener = socket.create_server((address, 0), backlog=4096)
        except OSError as error:
            what = f"the rendezvous cannot listen on {address}: {error.strerror or error}."
            fix = "give an address or interface of this host that the workers can reach."
            raise Refusal(what, fix=fix, code=ExitCode.CANNOT_CREATE) from error
        self._listener.setblocking(False)
        self.endpoint = f"{address}:{self._listener.getsockname()[1]}"
        self._closing: Future[None] = Future()
        self._connections: set[asyncio.Task[None]] = set()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._run, name="rendezvous", daemon=True)
        self._thread.start()

    def __enter__(self) -> Rendezvous:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set_result(None)
        self._thread.join()

    def job_environment(self) -> dict[str, str]:
        """Return the variables from which each Slurm task derives its own (`rank_layout.slurm_task_environment`)."""
        return {
            rank_layout.PLAN_VARIABLE: rank_layout.plan_text(self._plan),
            rank_layout.RENDEZVOUS_VARIABLE: self.endpoint,
            TOKEN_VARIABLE: self._token,
        }

    def worker_environment(self, rank: int, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return Horovod's variables for one worker that is started on this host; see `placement_environment`."""
        return rank_layout.placement_environment(self._plan, rank, self.endpoint, env or {})

    def _run(self) -> None:
        with self._listener, self._runner:  # which ends all connections
            self._runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop.add_reader(self._listener, self._accept)
        await asyncio.wrap_future(self._closing)

    def _accept(self) -> None:
        # By asyncio's sockets, not its streams: so each peer is judged the moment it is accepted.
        for _ in range(_MOST_AT_ONCE):
            try:
                connection, peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # too many open files: wait until some are closed
                self._loop.remove_reader(self._listener)
                self._loop.call_later(_RETRY_ACCEPT_S, self._loop.add_reader, self._listener, self._accept)
                return
            if (trusted := self.trusts(peer)) is False:
                connection.close()
                continue
            connection.setblocking(False)
            task = self._loop.create_task(self._converse(connection, peer, bool(trusted)))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _converse(self, connection: socket.socket, peer: Address, trusted: bool) -> None:
        """Receive one request and answer it; a peer that closes or takes too long gets no answer."""
        with connection:
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S) as deadline:
                    status, body = await self._answer_to(connection, peer, trusted, deadline)
                    head = f"HTTP/1.0 {status} {HTTPStatus(status).phrase}\r\nContent-Length: {len(body)}\r\n\r\n"
                    left = memoryview(head.encode() + body)
                    while left:
                        deadline.reschedule(self._loop.time() + REQUEST_TIMEOUT_S)
                        await self._loop.sock_sendall(connection, left[:_SEND_BYTES])
                        left = left[_SEND_BYTES:]
            except OSError:  # TimeoutError is one
                pass
            except Exception:  # a bug of ours ends one connection, not the server
                traceback.print_exc()

    async def _answer_to(
        self, connection: socket.socket, peer: Address, trusted: bool, deadline: asyncio.Timeout
    ) -> _Answer:
        received = b""
        while b"\r\n\r\n" not in received:
            if len(received) > _HEAD_BYTES:
                return _Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            received += await self._receive(connection)
        head, _, start = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        path, _, version = rest.rpartition(" ")
        pairs = [line.partition(":") for line in lines]
        if not path.startswith("/") or not version.startswith("HTTP/1.") or not all(c for _, c, _ in pairs):
            return _Answer(HTTPStatus.BAD_REQUEST)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        request = _Request(method, path, headers)
        expected = self._body_bytes(request, peer[0], trusted)
        if isinstance(expected, _Answer):
            return expected
        body = bytearray(start)
        while len(body) < expected:
            deadline.reschedule(self._loop.time() + REQUEST_TIMEOUT_S)
            body += await self._receive(connection)
        deadline.reschedule(None)
        return await self._answer(request, bytes(body[:expected]))

    async def _receive(self, connection: socket.socket) -> bytes:
        received = await self._loop.sock_recv(connection, _READ_BYTES)
        if not received:
            raise ConnectionError("the peer has closed")
        return received

    def trusts(self, peer: Address) -> bool | None:
        """Return True if the peer is a process of this process's user; None if it is on another host."""
        if peer[0] in self._known:
            return None
        on_this_host = peer[0].startswith("127.") or peer[0] == self._address
        try:
            user = user_of(peer, self._listener.getsockname())
        except OSError as error:  # nothing here can tell users apart, or it has no descriptor left to ask
            return error.errno != errno.EMFILE and (on_this_host or None)
        if user is None:
            return False if on_this_host else None
        return user == os.geteuid()

    def _body_bytes(self, request: _Request, address: str, trusted: bool) -> int | _Answer:
        """Return how many bytes of body to read, or an answer that refuses them."""
        if hmac.compare_digest(request.headers.get("authorization", "").encode(), self._authorization):
            self._known.add(address)
        if not (trusted or address in self._known):
            return _Answer(403)
        scope, key = request.scope_and_key
        prefix = "" if request.method == "DELETE" else "rank_"
        members = self.members(scope)
        own = request.method == "GET" and request.path in (_ALL, _MISSING)
        if not own and key.removeprefix(prefix) not in members:
            return _Answer(400)
        if request.method != "PUT":
            return 0
        text = request.headers.get("content-length", "")
        length = int(text) if text.isdecimal() and len(text) < 9 else None
        if length is None or length > limits.RENDEZVOUS_VALUE * (1 + len(members) // 256):
            return _Answer(413)
        return length

    async def _answer(self, request: _Request, body: bytes) -> _Answer:
        scope, key = request.scope_and_key
        if request.method == "PUT":
            self._values.setdefault(scope, {})[key] = body
            if scope == READY and not self._missing():
                self._all_ready.set()
            return _Answer(200)
        if request.method == "DELETE":
            self._leave(scope, key)
            return _Answer(200)
        if request.method != "GET":
            return _Answer(501)
        if request.path == _MISSING:
            wait = request.headers.get("wait", "")
            if len(wait) < 9 and wait.replace(".", "", 1).isdecimal():
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(float(wait), WAIT_S)):
                        await self._all_ready.wait()
            ranks = sorted(map(int, self._missing()))
            return _Answer(200, json.dumps({"num": len(ranks), "first": ranks[:MOST_NAMED]}).encode())
        values = self._values.get(scope, {})
        if request.path == _ALL and not self._missing():
            ready = self._values[READY]
            return _Answer(200, b"\n".join(ready[rank] for rank in sorted(ready, key=int)))
        return _Answer(200, values[key]) if key in values else _Answer(404)

    def members(self, scope: str) -> set[str]:
        """Return the ranks of a scope; none if the plan has no such scope."""
        scope, of_set, digest = scope.partition(_PROCESS_SET)
        if of_set:
            self._process_set = self._process_set or digest[:16]
            if digest != self._process_set:
                return set()
        return self._members.get(scope, set())

    def _missing(self) -> set[str]:
        present = self._values.get(READY, {})
        return set() if len(present) == len(self._members[READY]) else self._members[READY] - present.keys()

    def _leave(self, scope: str, key: str) -> None:
        """Note that a rank is connected to its peers; clear the scope after the last one."""
        left = self._left.setdefault(scope, set())
        left.add(key)
        if len(left) == len(self.members(scope)):
            del self._left[scope]
            self._values.pop(scope, None)
