"""A worker that waits for others logs once which ranks are missing and how many have come."""

import http.client
import http.server
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import pytest

from tl_dist.refusal import Refusal
from tl_dist.rendezvous import barrier
from tl_dist.rendezvous.barrier import await_peers, messages_of_all
from tl_dist.rendezvous.server import Rendezvous

PLAN = [("a", 2), ("b", 1)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "SILENT_S", 0.1)


def test_workers_that_wait_say_for_whom(caplog: pytest.LogCaptureFixture) -> None:
    with Rendezvous(PLAN, "127.0.0.1") as opened:
        connection = http.client.HTTPConnection(opened.endpoint, timeout=5)
        connection.request("PUT", "/ready/1", b"a")
        with connection.getresponse() as answer:
            assert answer.status == 200
        connection.close()
        for rank in (0, 1):
            with pytest.raises(Refusal, match=f"rank {rank}: after 0.6 s 1 of 3 had not come: rank 2"):
                await_peers(opened.worker_environment(rank), timeout_s=0.6)
    assert caplog.messages == [f"rank {rank} waits for rank 2 (2 of 3 are there), at most 1 s" for rank in (0, 1)]


def test_a_worker_says_that_nobody_answers(caplog: pytest.LogCaptureFixture) -> None:
    with Rendezvous(PLAN, "127.0.0.1") as opened:
        env = opened.worker_environment(1)
    with pytest.raises(Refusal):
        await_peers(env, timeout_s=0.65)
    (said,) = caplog.messages
    assert said.startswith("rank 1 waits for an answer from the rendezvous at 127.0.0.1:")


def test_a_store_that_only_keeps_values_is_asked_for_each(caplog: pytest.LogCaptureFixture) -> None:
    """That of horovodrun."""
    with KeepsValues() as store:
        env = {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(store.server_address[1]),
            "HOROVOD_SIZE": "3",
        }
        with pytest.raises(Refusal, match=r"rank 0: after 0.3 s 2 of 3 had not come: rank 1 and 1 more"):
            await_peers(env | {"HOROVOD_RANK": "0"}, timeout_s=0.3)
        with ThreadPoolExecutor(2) as pool:
            others = [pool.submit(await_peers, env | {"HOROVOD_RANK": str(k)}, timeout_s=20) for k in (1, 2)]
            assert [other.result(20) for other in others] == [None, None]


class KeepsValues(http.server.ThreadingHTTPServer):
    """A value for each path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.values: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: KeepsValues

    def do_PUT(self) -> None:
        self.server.values[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200)

    def do_GET(self) -> None:
        self._answer(200 if self.path in self.server.values else 404)

    def _answer(self, status: int) -> None:
        self.send_response_only(status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_each_worker_is_told_what_all_have_said_in_rank_order() -> None:
    with Rendezvous(PLAN, "127.0.0.1") as opened, ThreadPoolExecutor(3) as workers:
        places = [opened.worker_environment(rank) for rank in range(3)]
        with pytest.raises(Refusal, match="does not know what 3 workers said"):
            messages_of_all(places[0])
        for rank in (2, 0, 1):
            workers.submit(await_peers, places[rank], timeout_s=60, message=f"10.0.0.{rank}:80")
        workers.shutdown()
        for env in places:
            assert messages_of_all(env) == ["10.0.0.0:80", "10.0.0.1:80", "10.0.0.2:80"]


def test_many_ranks_are_named_in_short() -> None:
    assert barrier._few(range(3, 5), 2) == "rank 3, 4"
    assert barrier._few(range(8), 1000) == "rank 0, 1, 2, 3, 4, 5, 6, 7 and 992 more"
