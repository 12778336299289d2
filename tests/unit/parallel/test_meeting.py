"""A worker that waits for others says for whom, once, and rank 0 how many are there."""

from __future__ import annotations

import http.client

import pytest

from tl_dist.launcher.rendezvous import Rendezvous
from tl_dist.parallel import meeting
from tl_dist.parallel.meeting import await_peers
from tl_dist.refusal import Refusal

PLAN = [("a", 2), ("b", 1)]


class FakeClock:
    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes where the worker sleeps, and nowhere else."""
    clock = FakeClock()
    monkeypatch.setattr(meeting, "time", clock)
    monkeypatch.setattr(meeting, "SILENT_S", 0.2)


def test_workers_that_wait_say_for_whom(caplog: pytest.LogCaptureFixture) -> None:
    with Rendezvous(PLAN, "127.0.0.1") as opened:
        connection = http.client.HTTPConnection(opened.endpoint, timeout=5)
        connection.request("PUT", "/ready/1", b"a")
        assert connection.getresponse().status == 200
        connection.close()
        for rank in (0, 1):
            with pytest.raises(Refusal):
                await_peers(opened.worker_environment(rank), timeout_s=0.65)
    assert caplog.messages == [
        "rank 0 waits for rank 2 (2 of 3 are there), at most 1 s",
        "rank 1 waits for rank 2, at most 1 s",
    ]


def test_a_worker_says_that_nobody_answers(caplog: pytest.LogCaptureFixture) -> None:
    with Rendezvous(PLAN, "127.0.0.1") as opened:
        env = opened.worker_environment(1)
    with pytest.raises(Refusal):
        await_peers(env, timeout_s=0.65)
    (said,) = caplog.messages
    assert said.startswith("rank 1 waits for an answer from the rendezvous at 127.0.0.1:")


def test_many_ranks_are_named_in_short() -> None:
    assert meeting._few(range(3, 5)) == "3, 4"
    assert meeting._few(range(1000)) == "0, 1, 2, 3, 4, 5, 6, 7 and 992 more"
