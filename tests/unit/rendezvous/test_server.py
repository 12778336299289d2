"""The rendezvous speaks Horovod's protocol on one address, refuses anything else, and lets workers wait."""

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous import server
from tl_dist.rendezvous.barrier import await_peers
from tl_dist.rendezvous.server import Rendezvous

PLAN = [("a", 2), ("b", 1)]


@pytest.fixture
def rendezvous() -> Iterator[Rendezvous]:
    with Rendezvous(PLAN, "127.0.0.1") as opened:
        yield opened


def ask(rendezvous: Rendezvous, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(rendezvous.endpoint, timeout=5)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_who_has_not_come_is_answered_when_all_have_or_in_time(rendezvous):
    def asked(wait: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection(rendezvous.endpoint, timeout=30)
        with closing(connection):
            connection.request("GET", "/ready/absent", headers={"Wait": wait})
            answer = connection.getresponse()
            assert answer.status == 200
            return json.loads(answer.read())

    assert asked("") == asked("nan") == asked("-1") == {"num": 3, "first": [0, 1, 2]}
    ask(rendezvous, "PUT", "/ready/1", b"host")
    ask(rendezvous, "PUT", "/ready/0", b"host")
    began = time.monotonic()
    assert asked("0.2") == {"num": 1, "first": [2]}
    assert time.monotonic() - began >= 0.2
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(asked, "20") for _ in range(3)]
        time.sleep(0.1)
        assert not any(answer.done() for answer in waiting)
        ask(rendezvous, "PUT", "/ready/2", b"host")
        assert [answer.result(5) for answer in waiting] == 3 * [{"num": 0, "first": []}]
    assert asked("20") == {"num": 0, "first": []}


def test_requests_come_in_pieces_and_silent_ones_are_let_go(rendezvous, monkeypatch):
    """And none holds up another."""
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 1.5)
    address = rendezvous.endpoint.split(":")
    with socket.create_connection(address) as silent, socket.create_connection(address) as slow:
        for piece in (b"PUT /glo", b"bal/0 HTTP/1.1\r\nContent-Le", b"ngth: 4\r\n\r", b"\nab", b"cd"):
            assert ask(rendezvous, "GET", "/global/0")[0] == 404
            slow.sendall(piece)
            time.sleep(0.02)
        assert slow.recv(100).startswith(b"HTTP/1.0 200 OK")
        assert ask(rendezvous, "GET", "/global/0") == (200, b"abcd")
        silent.settimeout(10)
        assert silent.recv(100) == b""


@pytest.mark.parametrize("head", [b"x" * 20_000, b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"\0\r\n\r\n"])
def test_what_is_no_request_is_refused(rendezvous, head, capfd):
    with socket.create_connection(rendezvous.endpoint.split(":")) as stranger:
        stranger.sendall(head)
        assert stranger.recv(100).startswith(b"HTTP/1.0 4")
    assert ask(rendezvous, "GET", "/global/0")[0] == 404
    assert capfd.readouterr().err == ""


def test_a_fault_of_ours_ends_one_answer_alone(rendezvous, monkeypatch, capfd):
    def broken(server, scope):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("tl_dist.rendezvous.server.Rendezvous.members", broken)
        with pytest.raises(http.client.RemoteDisconnected):
            ask(rendezvous, "GET", "/global/0")
    assert ask(rendezvous, "GET", "/global/0")[0] == 404
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_large_value_reaches_a_peer_that_reads_slowly():
    """More than the kernel holds for it; others are answered meanwhile."""
    value = os.urandom(7 << 20)
    with Rendezvous([("a", 30_000)], "127.0.0.1") as opened, socket.socket() as slow:
        assert ask(opened, "PUT", "/global/0", value) == (200, b"")
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect(("127.0.0.1", int(opened.endpoint.split(":")[1])))
        slow.sendall(b"GET /global/0 HTTP/1.1\r\n\r\n")
        time.sleep(0.1)
        assert ask(opened, "GET", "/global/1")[0] == 404
        with slow.makefile("rb") as answer:
            assert answer.read().endswith(value)


def test_value_is_absent_until_it_is_put(rendezvous):
    for key in ("2", "rank_2"):
        assert ask(rendezvous, "GET", f"/global/{key}") == (404, b"")
        assert ask(rendezvous, "PUT", f"/global/{key}", b"\0\xffhost") == (200, b"")
        assert ask(rendezvous, "GET", f"/global/{key}") == (200, b"\0\xffhost")
        assert ask(rendezvous, "PUT", f"/global/{key}", b"again") == (200, b"")
        assert ask(rendezvous, "GET", f"/global/{key}") == (200, b"again")


@pytest.mark.parametrize(
    ("scope", "size"), [("global", 3), ("local_a", 2), ("local_b", 1), ("cross_0", 2), ("cross_1", 1)]
)
def test_scope_is_forgotten_when_all_its_members_have_left(rendezvous, scope, size):
    ask(rendezvous, "PUT", f"/{scope}/0", b"x")
    for rank in range(size):
        assert ask(rendezvous, "GET", f"/{scope}/0") == (200, b"x")
        # A worker that got no answer says it again; that must not count for another one.
        assert ask(rendezvous, "DELETE", f"/{scope}/{rank}") == (200, b"")
        if rank < size - 1:
            assert ask(rendezvous, "DELETE", f"/{scope}/{rank}") == (200, b"")
    assert ask(rendezvous, "GET", f"/{scope}/0") == (404, b"")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/global", "/global/", "/a/b/c", "/../etc/passwd", "/global/x%20y", f"/g/{'k' * 101}"),
        *("/global/absent", "/ready/absent/0", "/ready/absent?wait=1", "/local_a/absent"),
        *("/global/3", "/global/00", "/global/-1", "/local_a/2", "/local_c/0", "/cross_1/1", "/cross_2/0"),
        *(
            "/ready/3",
            "/global/rank_3",
            "/global/rank_",
            "/global/rank_rank_0",
            "/rank_and_size/a:0",
            "/else_process_set_hash_1f/0",
        ),
    ],
)
def test_what_the_plan_has_no_use_for_is_refused(rendezvous, path):
    for method in ("GET", "PUT", "DELETE"):
        assert ask(rendezvous, method, path, b"x")[0] == 400


def test_the_set_of_all_workers_meets_in_scopes_of_its_own(rendezvous):
    scope = "/local_a_process_set_hash_7d48533536350577"
    assert ask(rendezvous, "PUT", f"{scope}/1", b"x") == (200, b"")
    assert ask(rendezvous, "GET", "/local_a/1") == (404, b"")
    assert ask(rendezvous, "GET", f"{scope}/2")[0] == 400
    assert ask(rendezvous, "GET", "/global_process_set_hash_7d48533536350577/2")[0] == 404
    assert ask(rendezvous, "GET", "/global_process_set_hash_8/2")[0] == 400  # there is but one such set
    for rank in (0, 1):
        ask(rendezvous, "DELETE", f"{scope}/{rank}")
    assert ask(rendezvous, "GET", f"{scope}/1") == (404, b"")


def test_members_of_no_plan_end_no_meeting(rendezvous):
    ask(rendezvous, "PUT", "/global/0", b"x")
    for key in ("7", "8", "00", "rank_1"):
        ask(rendezvous, "DELETE", f"/global/{key}")
    assert ask(rendezvous, "GET", "/global/0") == (200, b"x")


def answer_to_length(rendezvous: Rendezvous, length: str | None) -> int:
    """The status for a PUT that announces so many bytes. None is sent: a server that refuses does not read them,
    and whether its answer or the closed connection is seen first would be chance."""
    connection = http.client.HTTPConnection(rendezvous.endpoint, timeout=5)
    try:
        connection.putrequest("PUT", "/global/1")
        if length is not None:
            connection.putheader("Content-Length", length)
        connection.endheaders()
        with connection.getresponse() as answer:
            return answer.status
    finally:
        connection.close()


@pytest.mark.parametrize("length", ["1000000000000", "9" * 5000, "\xb2", "-1", "0x10", "", None])
def test_length_that_is_none_or_too_long_is_refused_without_a_word(rendezvous, length, capfd):
    assert answer_to_length(rendezvous, length) == 413
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("workers", [3, 1024])
def test_the_addresses_of_all_peers_fit_twice_and_little_more(workers):
    with Rendezvous([("a", workers)], "127.0.0.1") as opened:
        assert ask(opened, "PUT", "/global/0", b"x" * (2 * 128 * workers))[0] == 200
        assert answer_to_length(opened, str((64 << 10) + 512 * workers)) == 413


def test_only_the_declared_address_listens(rendezvous):
    port = int(rendezvous.endpoint.rpartition(":")[2])
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.2", port))


def test_nothing_listens_after_the_block():
    with Rendezvous(PLAN, "127.0.0.1") as opened:
        endpoint = opened.endpoint
    address, _, port = endpoint.rpartition(":")
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect((address, int(port)))


def test_address_of_another_host_is_refused():
    with pytest.raises(Refusal, match="Fix: ") as refusal, Rendezvous(PLAN, "192.0.2.1"):
        pass
    assert refusal.value.code == ExitCode.CANNOT_CREATE


def test_worker_that_dies_while_sending_leaves_nothing(rendezvous, capfd):
    with socket.create_connection(rendezvous.endpoint.split(":")) as worker:
        worker.sendall(b"PUT /global/0 HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf")
    assert ask(rendezvous, "GET", "/global/0")[0] == 404
    assert capfd.readouterr().err == ""


def test_environments_name_the_open_port(rendezvous):
    for_all = rendezvous.job_environment()
    assert len(for_all.pop("TL_DIST_RENDEZVOUS_TOKEN")) == 32
    assert for_all == {"TL_DIST_PLAN": "a:2,b:1", "TL_DIST_RENDEZVOUS": rendezvous.endpoint}
    worker = rendezvous.worker_environment(2, {"HOROVOD_GLOO_TIMEOUT_SECONDS": "7"})
    assert f"127.0.0.1:{worker['HOROVOD_GLOO_RENDEZVOUS_PORT']}" == rendezvous.endpoint
    assert (worker["HOROVOD_HOSTNAME"], worker["HOROVOD_GLOO_IFACE"]) == ("b", "lo")
    assert worker["HOROVOD_GLOO_TIMEOUT_SECONDS"] == "7"


def test_workers_wait_for_the_last_one(rendezvous):
    """However late: the first two wait while the third is not even started."""
    arrived = []

    def worker(rank: int) -> None:
        await_peers(rendezvous.worker_environment(rank), timeout_s=30)
        arrived.append(rank)

    early = [threading.Thread(target=worker, args=(rank,)) for rank in (0, 1)]
    for thread in early:
        thread.start()
    for rank in (0, 1):
        while ask(rendezvous, "GET", f"/ready/{rank}")[0] != 200:
            assert early[rank].is_alive()
    assert arrived == []
    worker(2)
    for thread in early:
        thread.join(timeout=30)
    assert sorted(arrived) == [0, 1, 2]


def test_worker_that_does_not_come_is_named(rendezvous):
    with pytest.raises(Refusal, match=r"rank 1: after 0.3 s 2 of 3 had not come: rank 0, 2\. .*Fix: ") as refusal:
        await_peers(rendezvous.worker_environment(1), timeout_s=0.3)
    assert refusal.value.code == ExitCode.PEER_LOST


def test_rendezvous_that_is_gone_is_named():
    with Rendezvous(PLAN, "127.0.0.1") as opened:
        env = opened.worker_environment(0)
    with pytest.raises(Refusal, match=r"no answer from the rendezvous at 127.0.0.1.*Fix: ") as refusal:
        await_peers(env, timeout_s=0.3)
    assert refusal.value.code == ExitCode.PEER_LOST


def test_nobody_waits_without_a_rendezvous():
    await_peers({}, timeout_s=0)
