"""The meeting point of a run's workers: the key-value store through which Horovod's Gloo finds its peers.

Horovod ships one (horovod/runner/http/http_server.py, 0.28.1); this one speaks the same protocol, but listens
on one address instead of all of them, on a port the kernel picks, and takes only what Gloo sends. The
protocol, from horovod/common/gloo/http_store.cc and gloo_context.cc:

- PUT /SCOPE/KEY stores the body. A worker that got no answer sends it again, so it may overwrite.
- GET /SCOPE/KEY answers 200 with it, or 404 until it is there: workers ask every 10 ms. Any other status is
  retried.
- DELETE /SCOPE/RANK says that RANK is connected to all its peers of that scope. After the last one the scope
  is forgotten, so that the same workers may meet again. The scopes and their sizes follow from the plan:
  `global`, one `local_HOST` per host, one `cross_K` per local rank. Other scopes (process sets) lose just
  that key.
"""

from __future__ import annotations

import re
import socketserver
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import cast

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

_PATH = re.compile(r"/([\w.:-]{1,300})/([\w.:-]{1,100})")
_MAX_VALUE_BYTES = 1 << 20  # a worker's addresses: 128 bytes or so for each of its peers
_MAX_VALUES = 1 << 18
_REQUEST_TIMEOUT_S = 3.0


class Rendezvous:
    """Open during a `with` block; then its workers can meet, as often as they start anew.

    `plan` says who is expected; `address` is the IPv4 address of this host that every worker can reach,
    loopback when all of them are here. Refuses (73) an address that this host does not have.
    """

    def __init__(self, plan: Plan, address: str) -> None:
        self.plan = list(plan)
        self.address = address
        self._server: _Server | None = None

    def __enter__(self) -> Rendezvous:
        try:
            self._server = _Server(self.address, self.plan)
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
        return {PLAN_VARIABLE: plan_text(self.plan), RENDEZVOUS_VARIABLE: self.endpoint}

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

    def __init__(self, address: str, plan: Plan) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[str, bytes]] = {}
        self._left: dict[str, set[str]] = {}
        self._sizes: dict[str, int] = {}
        for slot in slots_of(plan):
            self._sizes["global"] = slot.size
            self._sizes[f"local_{slot.host}"] = slot.local_size
            self._sizes[f"cross_{slot.local_rank}"] = slot.cross_size
        super().__init__((address, 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A worker that dies in the middle of a request is not worth a traceback here; anything else is."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def put(self, scope: str, key: str, value: bytes) -> bool:
        """Store; False when the store is full."""
        with self._lock:
            if sum(map(len, self._values.values())) >= _MAX_VALUES:
                return False
            self._values.setdefault(scope, {})[key] = value
            return True

    def get(self, scope: str, key: str) -> bytes | None:
        with self._lock:
            return self._values.get(scope, {}).get(key)

    def leave(self, scope: str, key: str) -> None:
        """One member of a scope is done with it."""
        with self._lock:
            if scope in self._sizes:
                left = self._left.setdefault(scope, set())
                left.add(key)
                if len(left) == self._sizes[scope]:
                    del self._left[scope]
                    self._values.pop(scope, None)
            else:
                values = self._values.get(scope, {})
                values.pop(key, None)
                if not values:
                    self._values.pop(scope, None)


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_TIMEOUT_S  # of the connection: one that sends nothing holds a thread no longer

    def do_GET(self) -> None:
        if (path := self._scope_and_key()) is not None:
            value = self._store.get(*path)
            self._answer(404 if value is None else 200, value or b"")

    def do_PUT(self) -> None:
        if (path := self._scope_and_key()) is None:
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MAX_VALUE_BYTES:
            return self._answer(413)
        value = self.rfile.read(int(length))
        if len(value) < int(length):  # the worker died while sending
            return self._answer(400)
        self._answer(200 if self._store.put(*path, value) else 507)

    def do_DELETE(self) -> None:
        if (path := self._scope_and_key()) is not None:
            self._store.leave(*path)
            self._answer(200)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: every worker polls."""

    @property
    def _store(self) -> _Server:
        return cast(_Server, self.server)

    def _scope_and_key(self) -> tuple[str, str] | None:
        match = _PATH.fullmatch(self.path)
        if match is None:
            self._answer(400)
            return None
        return match[1], match[2]

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
