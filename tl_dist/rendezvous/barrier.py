"""Wait for all workers before Horovod starts. Imports no framework.

`hvd.init()` aborts the whole process when a peer is later than Gloo's timeout, and a longer timeout would delay the
detection of a frozen peer. So the workers first wait for each other here, with a timeout of their own, at the
rendezvous that Horovod uses afterwards.
"""

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
"""the scope in which workers announce themselves"""
ABSENT = "absent"
"""a key of that scope which no worker puts: our rendezvous answers it with the ranks that are missing"""
TOKEN_VARIABLE = "TL_DIST_RENDEZVOUS_TOKEN"
"""the token by which a rendezvous of ours knows workers on other hosts; only its user can read a process's variables"""
SILENT_S = 5.0
"""a worker that waits for others longer than this logs it, once"""
WAIT_S = 20.0
"""our rendezvous holds a request for this long at most"""
MOST_NAMED = 8
"""ranks that its answer names"""
_POLL_S = 0.1
_ANSWER_S = 10.0
_log = logging.getLogger(__name__)


def await_peers(env: Mapping[str, str], *, timeout_s: float, message: str | None = None) -> None:
    """Return when every worker of the run has called this; at once where there is no Gloo rendezvous.

    `env` holds Horovod's variables. `messages_of_all` then returns each worker's `message`. Refuses (76) after
    `timeout_s`, naming the missing ranks; logs a warning that names them after SILENT_S.
    """
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" not in env:
        return
    store = _Store(env)
    rank, size, body = store.rank, store.size, (message or socket.gethostname()).encode()
    deadline = time.monotonic() + timeout_s
    say_at = time.monotonic() + SILENT_S
    announced = False
    while True:
        now = time.monotonic()
        num, waits_for, failure = size, f"an answer from {store.where}", None
        try:
            announced = announced or store.ask("PUT", f"/{rank}", body) is not None
            num, waits_for = store.absent(max(0.0, min(WAIT_S, deadline - now, max(say_at - now, _POLL_S))))
            if not num:
                return
        except OSError as error:
            failure = error
        if time.monotonic() >= deadline:
            if failure is not None:
                raise store.lost(failure) from failure
            raise _lost(f"rank {rank}: after {timeout_s:g} s {num} of {size} had not come: {waits_for}.")
        if time.monotonic() >= say_at:
            say_at = deadline
            there = f" ({size - num} of {size} are there)" if failure is None else ""
            _log.warning("rank %d waits for %s%s, at most %.0f s", rank, printable(waits_for), there, timeout_s)
        if failure is not None or not store.can_wait:
            time.sleep(_POLL_S)


def messages_of_all(env: Mapping[str, str]) -> list[str]:
    """Return each worker's message, in rank order, once all have come. Only a rendezvous of ours knows them."""
    store = _Store(env)
    try:
        answer = store.ask("GET", "")
    except OSError as error:
        raise store.lost(error) from error
    messages = (answer or b"").decode("ascii", "replace").split("\n")
    if answer is None or len(messages) != store.size:
        what = f"rank {store.rank}: {store.where} does not know what {store.size} workers said."
        fix = "start the workers with tl-dist train or tl-dist submit, or use strategy=horovod."
        raise Refusal(what, fix=fix, code=ExitCode.UNSAFE)
    return messages


class _Store:
    """A client of the rendezvous: ours, or horovodrun's, which only stores values. Methods raise OSError."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.rank, self.size = integer(env, "HOROVOD_RANK"), integer(env, "HOROVOD_SIZE")
        self._address = rendezvous_of(env)
        self.where = "the rendezvous at {}:{}".format(*self._address)
        self._authorization = authorization(env.get(TOKEN_VARIABLE, ""))
        self._missing = list(range(self.size))  # ranks not yet seen in a store that only stores values
        self.can_wait = True
        """True if the rendezvous delays its answer until no worker is missing"""

    def absent(self, wait_s: float) -> tuple[int, str]:
        """Return how many workers are missing, and their ranks in words; `can_wait`: in `wait_s`, or once none is."""
        if self.can_wait:
            answer = self.ask("GET", f"/{ABSENT}", wait_s=wait_s)
            if answer is not None:
                absent = json.loads(answer)
                return absent["num"], _few(absent["first"], absent["num"])
            self.can_wait = False
        while self._missing and self.ask("GET", f"/{self._missing[0]}") is not None:
            del self._missing[0]
        return len(self._missing), _few(self._missing[:1], len(self._missing))

    def lost(self, error: OSError) -> Refusal:
        """Return the refusal for a rendezvous that does not answer."""
        return _lost(f"rank {self.rank}: no answer from {self.where}: {error}.")

    def ask(self, method: str, key: str, body: bytes | None = None, wait_s: float = 0.0) -> bytes | None:
        """Return the body of the answer; None if the store has no such key."""
        connection = http.client.HTTPConnection(*self._address, timeout=wait_s + _ANSWER_S)
        headers = {"Authorization": self._authorization, "Wait": f"{wait_s:.3f}"}
        try:
            connection.request(method, f"/{READY}{key}", body, headers)
            # Stays open after the connection unless it is closed itself.
            with connection.getresponse() as answer:
                status, body = answer.status, answer.read()
        finally:
            connection.close()
        if status == HTTPStatus.FORBIDDEN:
            what = f"rank {self.rank}: {self.where} does not know this worker as one of its run."
            fix = "let tl-dist submit start all workers, as one user."
            raise Refusal(what, fix=fix, code=ExitCode.UNSAFE)
        return body if status == HTTPStatus.OK else None


def rendezvous_of(env: Mapping[str, str]) -> tuple[str, int]:
    """Return the address and port of the rendezvous."""
    return env["HOROVOD_GLOO_RENDEZVOUS_ADDR"], integer(env, "HOROVOD_GLOO_RENDEZVOUS_PORT")


def authorization(token: str) -> str:
    """Return the value of the header by which a worker shows its token."""
    return f"Bearer {token}"


def _few(ranks: Sequence[int], num: int) -> str:
    shown = f"rank {', '.join(map(str, ranks))}"
    return shown + (f" and {num - len(ranks)} more" if num > len(ranks) else "")


def _lost(what: str) -> Refusal:
    return Refusal(what, fix="see the logs of those ranks.", code=ExitCode.PEER_LOST)
