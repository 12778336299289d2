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
from collections.abc import Mapping
from contextlib import suppress

from tl_dist.files import limits
from tl_dist.files.process import allow_many_open_files
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous.barrier import ABSENT, MOST_NAMED, READY, TOKEN_VARIABLE, WAIT_S, authorization
from tl_dist.rendezvous.http_server import Answer, HttpServer, Request
from tl_dist.rendezvous.peers import user_of
from tl_dist.rendezvous.rank_layout import (
    PLAN_VARIABLE,
    RENDEZVOUS_VARIABLE,
    Plan,
    placement_environment,
    placements_of,
    plan_text,
)

_PROCESS_SET = "_process_set_hash_"
_ALL, _MISSING = f"/{READY}", f"/{READY}/{ABSENT}"  # paths of our own requests


class Rendezvous:
    """Serve the workers of `plan` until the end of a `with` block, however often they start again.

    `address` is the IPv4 address of this host that every worker can reach, loopback if all of them are here.
    Refuses (73) an address that this host does not have.
    """

    def __init__(self, plan: Plan, address: str) -> None:
        self._plan = list(plan)
        self._token = secrets.token_hex(16)
        allow_many_open_files()  # each worker keeps a connection while it waits
        try:
            self._server = _Server(address, self._plan, self._token)
        except OSError as error:
            raise Refusal(
                f"the rendezvous cannot listen on {address}: {error.strerror or error}.",
                fix="give an address or interface of this host that the workers can reach.",
                code=ExitCode.CANNOT_CREATE,
            ) from error
        self.endpoint = f"{address}:{self._server.endpoint[1]}"

    def __enter__(self) -> Rendezvous:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def job_environment(self) -> dict[str, str]:
        """Return the variables from which each Slurm task derives its own (`rank_layout.slurm_task_environment`)."""
        return {
            PLAN_VARIABLE: plan_text(self._plan),
            RENDEZVOUS_VARIABLE: self.endpoint,
            TOKEN_VARIABLE: self._token,
        }

    def worker_environment(self, rank: int, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return Horovod's variables for one worker that is started on this host; see `placement_environment`."""
        return placement_environment(self._plan, rank, self.endpoint, env or {})


class _Server(HttpServer):
    """The key-value store, and the rules on who may use it."""

    def __init__(self, address: str, plan: Plan, token: str) -> None:
        self._address = address
        self._authorization = authorization(token).encode()
        self._known: set[str] = set()  # addresses of other hosts that have shown the token
        self._values: dict[str, dict[str, bytes]] = {}
        self._left: dict[str, set[str]] = {}
        self._members: dict[str, set[str]] = {}
        self._process_set = ""  # the digest of the one that there is
        self._all_ready = asyncio.Event()
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
        """Return True if the peer is a process of this process's user; None if it is on another host."""
        if peer[0] in self._known:
            return None
        on_this_host = peer[0].startswith("127.") or peer[0] == self._address
        try:
            user = user_of(peer, self.endpoint)
        except OSError as error:  # nothing here can tell users apart, or it has no descriptor left to ask
            return error.errno != errno.EMFILE and (on_this_host or None)
        if user is None:
            return False if on_this_host else None
        return user == os.geteuid()

    def body_bytes(self, request: Request) -> int | Answer:
        address = request.peer[0]
        if hmac.compare_digest(request.headers.get("authorization", "").encode(), self._authorization):
            self._known.add(address)
        if not (request.trusted or address in self._known):
            return Answer(403)
        scope, key = _scope_and_key(request)
        prefix = "" if request.method == "DELETE" else "rank_"
        members = self.members(scope)
        if key.removeprefix(prefix) not in members and not (
            request.method == "GET" and request.path in (_ALL, _MISSING)
        ):
            return Answer(400)
        if request.method != "PUT":
            return 0
        text = request.headers.get("content-length", "")
        length = int(text) if text.isdecimal() and len(text) < 9 else None
        if length is None or length > limits.RENDEZVOUS_VALUE * (1 + len(members) // 256):
            return Answer(413)
        return length

    async def answer(self, request: Request, body: bytes) -> Answer:
        scope, key = _scope_and_key(request)
        if request.method == "PUT":
            self._values.setdefault(scope, {})[key] = body
            if scope == READY and not self._missing():
                self._all_ready.set()
            return Answer(200)
        if request.method == "DELETE":
            self._leave(scope, key)
            return Answer(200)
        if request.method != "GET":
            return Answer(501)
        if request.path == _MISSING:
            wait = request.headers.get("wait", "")
            wait_s = (
                min(float(wait), WAIT_S) if wait.replace(".", "", 1).isdecimal() and len(wait) < 9 else 0.0
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._all_ready.wait()
            return self._count_missing()
        values = self._values.get(scope, {})
        if request.path == _ALL and not self._missing():
            ready = self._values[READY]
            return Answer(200, b"\n".join(ready[rank] for rank in sorted(ready, key=int)))
        return Answer(200, values[key]) if key in values else Answer(404)

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

    def _count_missing(self) -> Answer:
        """Answer with the number of missing ranks, and the first of them."""
        ranks = sorted(map(int, self._missing()))
        return Answer(200, json.dumps({"num": len(ranks), "first": ranks[:MOST_NAMED]}).encode())

    def _leave(self, scope: str, key: str) -> None:
        """Note that a rank is connected to its peers; clear the scope after the last one."""
        left = self._left.setdefault(scope, set())
        left.add(key)
        if len(left) == len(self.members(scope)):
            del self._left[scope]
            self._values.pop(scope, None)


def _scope_and_key(request: Request) -> tuple[str, str]:
    scope, _, key = request.path.removeprefix("/").rpartition("/")
    return scope, key
