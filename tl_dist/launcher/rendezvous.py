"""The meeting point of a run's workers: the key-value store through which Horovod's Gloo finds its peers.

Horovod ships one (horovod/runner/http/http_server.py, 0.28.1); this one speaks the same protocol, but listens
on one address instead of all of them, on a port the kernel picks, and takes only what the plan's workers send:

- A peer on this host must belong to the same user. That is asked of the kernel, since all of loopback has one address.
- One on another host must first show the job's token, which `meeting` does from each worker. Horovod's own client knows
  of no token: it is taken by the address that showed one, through whatever interface that is.
- Scopes, keys and sizes are those that the plan has a use for.

The protocol, from horovod/common/gloo/http_store.cc and gloo_context.cc:

- PUT /SCOPE/KEY stores the body: a worker's host name as `rank_RANK`, its addresses as `RANK`. A worker that got no
  answer sends it again, so it may overwrite.
- GET /SCOPE/KEY answers 200 with it, or 404 until it is there: workers ask every 10 ms. Any other status is
  retried.
- DELETE /SCOPE/RANK says that RANK is connected to all its peers of that scope. After the last one the scope
  is forgotten, so that the same workers may meet again. The scopes and their sizes follow from the plan:
  `global`, one `local_HOST` per host, one `cross_K` per local rank; RANK is that within the scope.
- A process set meets in scopes of the same names with its digest behind. tl_dist makes none, but Horovod has one of all
  workers, which meet a second time for it.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socketserver
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import cast

from tl_dist.files import limits
from tl_dist.launcher.peers import user_of
from tl_dist.parallel.meeting import READY, TOKEN_VARIABLE, authorization
from tl_dist.parallel.slots import (
    GLOO_TIMEOUT_S,
    PLAN_VARIABLE,
    RENDEZVOUS_VARIABLE,
    Plan,
    network_interface_towards,
    plan_text,
    slot_environment,
    slots_of,
)
from tl_dist.refusal import ExitCode, Refusal

_PROCESS_SET = "_process_set_hash_"
_REQUEST_TIMEOUT_S = 3.0


class Rendezvous:
    """Open during a `with` block; then its workers can meet, as often as they start anew.

    `plan` says who is expected; `address` is the IPv4 address of this host that every worker can reach,
    loopback when all of them are here. Refuses (73) an address that this host does not have.
    """

    def __init__(self, plan: Plan, address: str) -> None:
        self.plan = list(plan)
        self.address = address
        self._token = secrets.token_hex(16)
        self._server: _Server | None = None

    def __enter__(self) -> Rendezvous:
        try:
            self._server = _Server(self.address, self.plan, self._token)
        except OSError as error:
            raise Refusal(
                f"the rendezvous cannot listen on {self.address}: {error.strerror or error}.",
                fix="give an address or interface of this host that the workers can reach.",
                code=ExitCode.CANNOT_CREATE,
            ) from error
        serve = partial(self._server.serve_forever, poll_interval=0.05)  # how long closing may take
        threading.Thread(target=serve, name="rendezvous", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    @property
    def endpoint(self) -> str:
        """ "address:port" of the open store."""
        if self._server is None:
            raise RuntimeError("the rendezvous is not open")
        return f"{self.address}:{self._server.server_address[1]}"

    def job_environment(self) -> dict[str, str]:
        """What all workers get when each finds its own slot (`slots.slurm_task_environment`)."""
        return {
            PLAN_VARIABLE: plan_text(self.plan),
            RENDEZVOUS_VARIABLE: self.endpoint,
            TOKEN_VARIABLE: self._token,
        }

    def worker_environment(
        self, rank: int, *, interface: str | None = None, gloo_timeout_s: int = GLOO_TIMEOUT_S
    ) -> dict[str, str]:
        """Horovod's variables for one worker that is started on this host."""
        return slot_environment(
            self.plan,
            rank,
            rendezvous=self.endpoint,
            interface=interface or network_interface_towards(self.address),
            gloo_timeout_s=gloo_timeout_s,
        )


class _Server(socketserver.ThreadingTCPServer):
    """The store. Not http.server.HTTPServer, whose constructor asks the DNS for this host's name."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024  # workers poll, each time on a new connection

    def __init__(self, address: str, plan: Plan, token: str) -> None:
        self._lock = threading.Lock()
        self._address = address
        self._authorization = authorization(token)
        self._known: set[str] = set()  # addresses of other hosts
        self._values: dict[str, dict[str, bytes]] = {}
        self._left: dict[str, set[str]] = {}
        self._members: dict[str, set[str]] = {}
        self._process_set = ""  # the digest of the one that there is
        for slot in slots_of(plan):
            for scope, rank in (
                ("global", slot.rank),
                (READY, slot.rank),
                (f"local_{slot.host}", slot.local_rank),
                (f"cross_{slot.local_rank}", slot.cross_rank),
            ):
                self._members.setdefault(scope, set()).add(str(rank))
        super().__init__((address, 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A worker that dies in the middle of a request is not worth a traceback here; anything else is."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def of_this_user(self, peer: tuple[str, int]) -> bool | None:
        """Whether the process at the other end belongs to this one's user; None for one on another host."""
        if peer[0] in self._known:
            return None
        on_this_host = peer[0].startswith("127.") or peer[0] == self._address
        try:
            user = user_of(peer, (self._address, self.server_address[1]))
        except OSError:  # nothing here can tell users apart
            return on_this_host or None
        if user is None:
            return False if on_this_host else None
        return user == os.geteuid()

    def takes(self, address: str, shown: str) -> bool:
        """Whether a peer on another host is one of the run's; `shown` is the authorization that it sent."""
        if hmac.compare_digest(shown.encode(), self._authorization.encode()):
            self._known.add(address)
        return address in self._known

    def members(self, scope: str) -> set[str]:
        """The ranks in a scope; none where the plan has no such scope."""
        scope, of_set, digest = scope.partition(_PROCESS_SET)
        if of_set:
            self._process_set = self._process_set or digest[:16]
            if digest != self._process_set:
                return set()
        return self._members.get(scope, set())

    def put(self, scope: str, key: str, value: bytes) -> None:
        with self._lock:
            self._values.setdefault(scope, {})[key] = value

    def get(self, scope: str, key: str) -> bytes | None:
        with self._lock:
            return self._values.get(scope, {}).get(key)

    def leave(self, scope: str, key: str) -> None:
        """One member of a scope is done with it."""
        with self._lock:
            left = self._left.setdefault(scope, set())
            left.add(key)
            if len(left) == len(self.members(scope)):
                del self._left[scope]
                self._values.pop(scope, None)


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_TIMEOUT_S  # of the connection: one that sends nothing holds a thread no longer

    def handle(self) -> None:
        self._here = self._store.of_this_user(self.client_address)
        if self._here is not False:  # else not a byte is read
            super().handle()

    def do_GET(self) -> None:
        if (path := self._scope_and_key()) is not None:
            value = self._store.get(*path)
            self._answer(404 if value is None else 200, value or b"")

    def do_PUT(self) -> None:
        if (path := self._scope_and_key()) is None:
            return
        text = self.headers.get("Content-Length", "")
        length = int(text) if text.isdecimal() and len(text) < 9 else None
        members = len(self._store.members(path[0]))
        if length is None or length > limits.RENDEZVOUS_VALUE * (1 + members // 256):
            return self._answer(413)
        value = self.rfile.read(length)
        if len(value) < length:  # the worker died while sending
            return self._answer(400)
        self._store.put(*path, value)
        self._answer(200)

    def do_DELETE(self) -> None:
        if (path := self._scope_and_key(prefix="")) is not None:
            self._store.leave(*path)
            self._answer(200)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: every worker polls."""

    @property
    def _store(self) -> _Server:
        return cast(_Server, self.server)

    def _scope_and_key(self, *, prefix: str = "rank_") -> tuple[str, str] | None:
        """Where the request points; None where it was answered: it is no worker's, or nothing that the plan has."""
        if not (
            self._here or self._store.takes(self.client_address[0], self.headers.get("Authorization", ""))
        ):
            self._answer(403)
            return None
        scope, _, key = self.path.removeprefix("/").rpartition("/")
        if key.removeprefix(prefix) not in self._store.members(scope):
            self._answer(400)
            return None
        return scope, key

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
