"""Wait for all workers before Horovod starts. Imports no framework.

`hvd.init()` aborts the whole process when a peer is later than Gloo's timeout, which also bounds how fast a
frozen peer is noticed. So the workers meet here first, with patience of their own, at the store that Horovod
uses afterwards.
"""

from __future__ import annotations

import http.client
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPStatus

from tl_dist.parallel.slots import integer
from tl_dist.refusal import ExitCode, Refusal, printable

READY = "ready"
"""the scope in which workers say that they have come"""
TOKEN_VARIABLE = "TL_DIST_RENDEZVOUS_TOKEN"
"""what a worker shows a rendezvous of ours on another host; a process's variables are its user's alone to read"""
SILENT_S = 5.0
"""a worker that waits for others longer than this says so, once"""
_POLL_S = 0.1
_RANKS_SHOWN = 8
_log = logging.getLogger(__name__)


def await_peers(env: Mapping[str, str], *, timeout_s: float) -> None:
    """Return when every worker of the run has called this, at once where there is no Gloo rendezvous.

    `env` holds Horovod's variables. Refuses (76) after `timeout_s`, naming the ranks that did not come. A warning of
    `logging` says what is waited for after SILENT_S.
    """
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" not in env:
        return
    rank, size = integer(env, "HOROVOD_RANK"), integer(env, "HOROVOD_SIZE")
    address, port = env["HOROVOD_GLOO_RENDEZVOUS_ADDR"], integer(env, "HOROVOD_GLOO_RENDEZVOUS_PORT")
    request = partial(_request, address, port, token=env.get(TOKEN_VARIABLE, ""))
    deadline = time.monotonic() + timeout_s
    say_at = time.monotonic() + SILENT_S
    missing = list(range(size))
    come = False
    while missing:
        late, quiet = time.monotonic() > deadline, time.monotonic() < say_at
        waits_for = f"an answer from the rendezvous at {address}:{port}"
        try:
            come = come or request("PUT", rank, body=socket.gethostname().encode())
            # One question at a time: in the end all that is needed is the answer about the last one.
            while missing and request("GET", missing[0]):
                del missing[0]
            waits_for = f"rank {missing[0]}" if missing else "nobody"
            # Rank 0 asks for all: if everyone did, a thousand workers would ask a million times.
            if missing and (late or (rank == 0 and not quiet)):
                absent = [k for k in missing if not request("GET", k)]
                waits_for = f"rank {_few(absent)} ({size - len(absent)} of {size} are there)"
            if missing and late:
                raise _lost(
                    f"rank {rank}: after {timeout_s:g} s these of {size} ranks had not come: {absent}."
                )
        except OSError as error:
            if late:
                raise _lost(
                    f"rank {rank}: no answer from the rendezvous at {address}:{port}: {error}."
                ) from error
        if missing:
            if not quiet:
                say_at = deadline
                _log.warning("rank %d waits for %s, at most %.0f s", rank, printable(waits_for), timeout_s)
            time.sleep(_POLL_S)


def authorization(token: str) -> str:
    """The header by which a worker shows its token."""
    return f"Bearer {token}"


def _request(address: str, port: int, method: str, rank: int, token: str, body: bytes | None = None) -> bool:
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request(method, f"/{READY}/{rank}", body, {"Authorization": authorization(token)})
        status = connection.getresponse().status
        if status == HTTPStatus.FORBIDDEN:
            raise Refusal(
                f"rank {rank}: the rendezvous at {address}:{port} does not know this worker as one of its run.",
                fix="let tl-dist submit start all workers, as one user.",
                code=ExitCode.UNSAFE,
            )
        return status == 200
    finally:
        connection.close()


def _few(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:_RANKS_SHOWN]))
    return shown + (f" and {len(ranks) - _RANKS_SHOWN} more" if len(ranks) > _RANKS_SHOWN else "")


def _lost(what: str) -> Refusal:
    return Refusal(what, fix="see the logs of those ranks.", code=ExitCode.PEER_LOST)
