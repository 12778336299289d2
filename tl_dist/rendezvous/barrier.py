"""Wait for all workers before Horovod starts. Imports no framework.

`hvd.init()` aborts the whole process when a peer is later than Gloo's timeout, which also bounds how fast a
frozen peer is noticed. So the workers meet here first, with patience of their own, at the store that Horovod
uses afterwards.
"""

from __future__ import annotations

import http.client
import json
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from tl_dist.refusal import ExitCode, Refusal, printable
from tl_dist.rendezvous.rank_layout import integer

READY = "ready"
"""the scope in which workers say that they have come"""
ABSENT = "absent"
"""the key there that nobody puts: our rendezvous answers who has not come"""
TOKEN_VARIABLE = "TL_DIST_RENDEZVOUS_TOKEN"
"""what a worker shows a rendezvous of ours on another host; a process's variables are its user's alone to read"""
SILENT_S = 5.0
"""a worker that waits for others longer than this says so, once"""
WAIT_S = 20.0
"""so long our rendezvous keeps a question at most"""
MOST_NAMED = 8
"""ranks in its answer"""
_POLL_S = 0.1
_ANSWER_S = 10.0
_log = logging.getLogger(__name__)


def await_peers(env: Mapping[str, str], *, timeout_s: float, saying: str | None = None) -> None:
    """Return when every worker of the run has called this, at once where there is no Gloo rendezvous.

    `env` holds Horovod's variables. `saying` is what `said_by_all` then gives to all of them. Refuses (76) after
    `timeout_s`, naming the ranks that did not come. A warning of `logging` says what is waited for after SILENT_S.
    """
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" not in env:
        return
    rank, size = integer(env, "HOROVOD_RANK"), integer(env, "HOROVOD_SIZE")
    where = "the rendezvous at {}:{}".format(*rendezvous_of(env))
    store = _Store(env)
    deadline = time.monotonic() + timeout_s
    say_at = time.monotonic() + SILENT_S
    come = False
    while True:
        now = time.monotonic()
        num, waits_for, failure = size, f"an answer from {where}", None
        try:
            come = come or store.come(saying or socket.gethostname())
            num, waits_for = store.absent(max(0.0, min(WAIT_S, deadline - now, max(say_at - now, _POLL_S))))
            if not num:
                return
        except OSError as error:
            failure = error
        if time.monotonic() >= deadline:
            if failure is not None:
                raise _lost(f"rank {rank}: no answer from {where}: {failure}.") from failure
            raise _lost(f"rank {rank}: after {timeout_s:g} s {num} of {size} had not come: {waits_for}.")
        if time.monotonic() >= say_at:
            say_at = deadline
            there = f" ({size - num} of {size} are there)" if failure is None else ""
            _log.warning(
                "rank %d waits for %s%s, at most %.0f s", rank, printable(waits_for), there, timeout_s
            )
        if failure is not None or not store.waits:
            time.sleep(_POLL_S)


class _Store:
    """What a worker asks of the rendezvous: ours, or the one of horovodrun, which only keeps values."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._address, self._port = rendezvous_of(env)
        self._rank = integer(env, "HOROVOD_RANK")
        self._headers = {"Authorization": authorization(env.get(TOKEN_VARIABLE, ""))}
        # As far as a store that only keeps values has been asked.
        self._missing = list(range(integer(env, "HOROVOD_SIZE")))
        self.waits = True
        """whether it answers when there is something to say"""

    def come(self, saying: str) -> bool:
        """Say that this worker is there. Raises OSError where nobody answers."""
        return self._ask("PUT", f"/{self._rank}", saying.encode()) is not None

    def said(self) -> list[str]:
        """What all have said; nothing where it is not known. Raises OSError where nobody answers."""
        answer = self._ask("GET", "")
        return [] if answer is None else answer.decode("ascii", "replace").split("\n")

    def absent(self, wait_s: float) -> tuple[int, str]:
        """How many have not come, and which, in words; after `wait_s` or, where `waits`, as soon as there are none."""
        if self.waits:
            answer = self._ask("GET", f"/{ABSENT}", wait_s=wait_s)
            if answer is not None:
                found = json.loads(answer)
                return found["num"], _few(found["first"], found["num"])
            self.waits = False
        while self._missing and self._ask("GET", f"/{self._missing[0]}") is not None:
            del self._missing[0]
        return len(self._missing), _few(self._missing[:1], len(self._missing))

    def _ask(self, method: str, key: str, body: bytes | None = None, wait_s: float = 0.0) -> bytes | None:
        """The body of the answer; None where the store has no such key."""
        connection = http.client.HTTPConnection(self._address, self._port, timeout=wait_s + _ANSWER_S)
        try:
            connection.request(method, f"/{READY}{key}", body, {**self._headers, "Wait": f"{wait_s:.3f}"})
            with connection.getresponse() as answer:  # which outlives the connection until it is closed
                status, body = answer.status, answer.read()
            if status == HTTPStatus.FORBIDDEN:
                raise Refusal(
                    f"rank {self._rank}: the rendezvous at {self._address}:{self._port} does not know this worker as "
                    "one of its run.",
                    fix="let tl-dist submit start all workers, as one user.",
                    code=ExitCode.UNSAFE,
                )
            return body if status == HTTPStatus.OK else None
        finally:
            connection.close()


def said_by_all(env: Mapping[str, str]) -> list[str]:
    """What each worker was `saying`, in rank order, once all have come. Only a rendezvous of ours knows it."""
    rank, size = integer(env, "HOROVOD_RANK"), integer(env, "HOROVOD_SIZE")
    where = "the rendezvous at {}:{}".format(*rendezvous_of(env))
    try:
        found = _Store(env).said()
    except OSError as error:
        raise _lost(f"rank {rank}: no answer from {where}: {error}.") from error
    if len(found) != size:
        raise Refusal(
            f"rank {rank}: {where} does not know what {size} workers said.",
            fix="start the workers with tl-dist train or tl-dist submit, or use strategy=horovod.",
            code=ExitCode.UNSAFE,
        )
    return found


def rendezvous_of(env: Mapping[str, str]) -> tuple[str, int]:
    """Address and port of the rendezvous."""
    return env["HOROVOD_GLOO_RENDEZVOUS_ADDR"], integer(env, "HOROVOD_GLOO_RENDEZVOUS_PORT")


def authorization(token: str) -> str:
    """The header by which a worker shows its token."""
    return f"Bearer {token}"


def _few(ranks: Sequence[int], num: int) -> str:
    shown = f"rank {', '.join(map(str, ranks))}"
    return shown + (f" and {num - len(ranks)} more" if num > len(ranks) else "")


def _lost(what: str) -> Refusal:
    return Refusal(what, fix="see the logs of those ranks.", code=ExitCode.PEER_LOST)
