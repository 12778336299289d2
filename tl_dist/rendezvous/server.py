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

import hmac
import json
import os
import secrets

from tl_dist.files import limits
from tl_dist.files.process import allow_many_open_files
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous.barrier import ABSENT, MOST_NAMED, READY, TOKEN_VARIABLE, WAIT_S, authorization
from tl_dist.rendezvous.http_server import Answer, Deferred, HttpServer, Request
from tl_dist.rendezvous.peers import user_of
from tl_dist.rendezvous.rank_layout import (
    PLAN_VARIABLE,
    RENDEZVOUS_VARIABLE,
    Plan,
    network_interface_towards,
    placement_environment,
    placements_of,
    plan_text,
)

_PROCESS_SET = "_process_set_hash_"


class Rendezvous:
    """Serve the workers of `plan` during a `with` block, however often they start again.

    `address` is the IPv4 address of this host that every worker can reach, loopback if all of them are here.
    Refuses (73) an address that this host does not have.
    """

    def __init__(self, plan: Plan, address: str) -> None:
        self.plan = list(plan)
        self.address = address
        self._token = secrets.token_hex(16)
        self._server: _Server | None = None

    def __enter__(self) -> Rendezvous:
        allow_many_open_files()  # each worker keeps a connection while it waits
        try:
            self._server = _Server(self.address, self.plan, self._token)
        except OSError as error:
            raise Refusal(
                f"the rendezvous cannot listen on {self.address}: {error.strerror or error}.",
                fix="give an address or interface of this host that the workers can reach.",
                code=ExitCode.CANNOT_CREATE,
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    @property
    def endpoint(self) -> str:
        """Return "address:port" of the open rendezvous."""
        if self._server is None:
            raise RuntimeError("the rendezvous is not open")
        return f"{self.address}:{self._server.endpoint[1]}"

    def job_environment(self) -> dict[str, str]:
        """Return the variables from which each Slurm task derives its own (`rank_layout.slurm_task_environment`)."""
        return {
            PLAN_VARIABLE: plan_text(self.plan),
            RENDEZVOUS_VARIABLE: self.endpoint,
            TOKEN_VARIABLE: self._token,
        }

    def worker_environment(
        self, rank: int, *, interface: str | None = None, timeout_s: int | None = None
    ) -> dict[str, str]:
        """Return Horovod's variables for one worker that is started on this host; `timeout_s` is Gloo's."""
        return placement_environment(
            self.plan,
            rank,
            rendezvous=self.endpoint,
            interface=interface or network_interface_towards(self.address),
            timeout_s=timeout_s,
        )


class _Server(HttpServer):
    """The key-value store, and the rules on who may use it."""

    def __init__(self, address: str, plan: Plan, token: str) -> None:
        self._address = address
        self._authorization = authorization(token)
        self._known: set[str] = set()  # addresses of other hosts
        self._values: dict[str, dict[str, bytes]] = {}
        self._left: dict[str, set[str]] = {}
        self._members: dict[str, set[str]] = {}
        self._process_set = ""  # the digest of the one that there is
        for placement in placements_of(plan):
            for scope, rank in (
                ("global", placement.rank),
                (READY, placement.rank),
                (f"local_{placement.host}", placement.local_rank),
                (f"cross_{placement.local_rank}", placement.cross_rank),
            ):
                self._members.setdefault(scope, set()).add(str(rank))
        super().__init__(address, "rendezvous")

    def trusts(self, peer: tuple[str, int]) -> bool | None:
        return self.of_this_user(peer)

    def body_bytes(self, request: Request) -> int | Answer:
        shown = request.headers.get("authorization", "")
        if not (request.trusted or self.takes(request.peer[0], shown)):
            return Answer(403)
        scope, _, key = request.path.removeprefix("/").rpartition("/")
        prefix = "" if request.method == "DELETE" else "rank_"
        if key.removeprefix(prefix) not in self.members(scope) and not (
            _asks_absent(request) or _asks_all(request)
        ):
            return Answer(400)
        if request.method != "PUT":
            return 0
        text = request.headers.get("content-length", "")
        length = int(text) if text.isdecimal() and len(text) < 9 else None
        if length is None or length > limits.RENDEZVOUS_VALUE * (1 + len(self.members(scope)) // 256):
            return Answer(413)
        return length

    def answer(self, request: Request, body: bytes) -> Answer | Deferred:
        scope, _, key = request.path.removeprefix("/").rpartition("/")
        if _asks_absent(request):
            return self._count(request.headers.get("wait", ""))
        if request.method == "GET":
            value = self._all_ready() if _asks_all(request) else self._values.get(scope, {}).get(key)
            return Answer(404) if value is None else Answer(200, value)
        if request.method == "PUT":
            self._values.setdefault(scope, {})[key] = body
            if scope == READY and not (absent := self._absent()):
                self.answer_waiting(_absent_answer(absent))
            return Answer(200)
        if request.method == "DELETE":
            self._leave(scope, key)
            return Answer(200)
        return Answer(501)

    def of_this_user(self, peer: tuple[str, int]) -> bool | None:
        """Return True if the peer is a process of this process's user; None if it is on another host."""
        if peer[0] in self._known:
            return None
        on_this_host = peer[0].startswith("127.") or peer[0] == self._address
        try:
            user = user_of(peer, self.endpoint)
        except OSError:  # nothing here can tell users apart
            return on_this_host or None
        if user is None:
            return False if on_this_host else None
        return user == os.geteuid()

    def takes(self, address: str, shown: str) -> bool:
        """Return True if a worker at `address` has shown the token; `shown` is the authorization header it sent now."""
        if hmac.compare_digest(shown.encode(), self._authorization.encode()):
            self._known.add(address)
        return address in self._known

    def members(self, scope: str) -> set[str]:
        """Return the ranks of a scope; none if the plan has no such scope."""
        scope, of_set, digest = scope.partition(_PROCESS_SET)
        if of_set:
            self._process_set = self._process_set or digest[:16]
            if digest != self._process_set:
                return set()
        return self._members.get(scope, set())

    def _absent(self) -> set[str]:
        present = self._values.get(READY, {})
        return set() if len(present) == len(self._members[READY]) else self._members[READY] - present.keys()

    def _count(self, wait: str) -> Answer | Deferred:
        absent = self._absent()
        wait_s = min(float(wait), WAIT_S) if wait.replace(".", "", 1).isdecimal() and len(wait) < 9 else 0.0
        return (
            Deferred(wait_s, lambda: _absent_answer(self._absent()))
            if absent and wait_s
            else _absent_answer(absent)
        )

    def _all_ready(self) -> bytes | None:
        """Return what every rank has put into the scope `ready`, in rank order; None while one is missing."""
        values = self._values.get(READY, {})
        ranks = [str(rank) for rank in range(len(self._members[READY]))]
        return None if self._absent() else b"\n".join(values[rank] for rank in ranks)

    def _leave(self, scope: str, key: str) -> None:
        """Note that a rank is connected to its peers; clear the scope after the last one."""
        left = self._left.setdefault(scope, set())
        left.add(key)
        if len(left) == len(self.members(scope)):
            del self._left[scope]
            self._values.pop(scope, None)


def _asks_absent(request: Request) -> bool:
    return request.method == "GET" and request.path == f"/{READY}/{ABSENT}"


def _asks_all(request: Request) -> bool:
    return request.method == "GET" and request.path == f"/{READY}"


def _absent_answer(absent: set[str]) -> Answer:
    """Answer with the number of missing ranks, and the first of them."""
    ranks = sorted(map(int, absent))
    return Answer(200, json.dumps({"num": len(ranks), "first": ranks[:MOST_NAMED]}).encode())
