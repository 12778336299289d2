"""Heartbeats reveal the worker that hangs, by its phase, and never one that waits for another that works."""

import pytest

from tl_dist.config import SafetyConfig
from tl_dist.launcher.hang import HangDetector
from tl_dist.runs.heartbeats import Beat

SAFETY = SafetyConfig(heartbeat_s=1, hang_s=10, first_step_s=100, alone_s=1000)


class Watched:
    """Two workers that say what they do at times of a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self._detector = HangDetector(SAFETY, from_step=5, now=0.0)
        self._said: dict[int, tuple[float, Beat]] = {}

    def beat(self, rank: int, phase: str, step: int = 8, patience_s: float = 0.0) -> None:
        number = 1 + (self._said[rank][1].number if rank in self._said else 0)
        self._said[rank] = (self.now, Beat(0.0, phase, step, "node1", 1, number, patience_s))

    def hung_after(self, s: float) -> dict[int, str]:
        """What the watcher finds, looking every second until `s` from now; it ends at the first find."""
        end = self.now + s
        while self.now < end:
            self.now = min(self.now + 1.0, end)
            beats = {rank: beat._replace(age_s=self.now - at) for rank, (at, beat) in self._said.items()}
            if found := self._detector.hung([0, 1], beats, now=self.now):
                return found
        return {}


@pytest.fixture
def watched() -> Watched:
    """Two workers that have made steps in this attempt, and that came to rank 0's phase together."""
    made = Watched()
    for rank in (0, 1):
        made.beat(rank, "stepping")
    made.beat(0, "fitting the classifier", patience_s=1000)
    made.beat(1, "fitting the classifier")
    return made


def test_rank_0_may_work_alone_for_its_patience_and_is_named_after_it(watched: Watched) -> None:
    assert watched.hung_after(1000) == {}
    assert list(watched.hung_after(2).items()) == [
        (0, "stalled, without progress for 1001 s while fitting the classifier, at step 8")
    ]


def test_a_worker_that_has_gone_ahead_waits_as_well(watched: Watched) -> None:
    watched.beat(1, "stepping")
    watched.beat(1, "evaluating test")
    assert watched.hung_after(900) == {}


def test_who_waited_has_its_whole_time_again_once_the_work_is_done(watched: Watched) -> None:
    """Rank 1 is released by rank 0's next collective, and speaks a while after that."""
    watched.hung_after(500)
    watched.beat(0, "stepping")
    assert watched.hung_after(9) == {}
    watched.beat(1, "stepping")
    assert watched.hung_after(1) == {}


def test_who_hangs_while_rank_0_works_is_found_as_soon_as_that_shows(watched: Watched) -> None:
    watched.hung_after(500)
    watched.beat(0, "stepping")  # it waits for rank 1 now
    found = watched.hung_after(12)
    assert next(iter(found)) == 1 and watched.now <= 512
    assert "while fitting the classifier" in found[1]


def test_a_worker_that_has_not_come_as_far_waits_for_nobody(watched: Watched) -> None:
    watched.beat(0, "writing the figures of test", patience_s=1000)
    assert list(watched.hung_after(12)) == [1] and watched.now == 11


def test_two_with_patience_do_not_wait_for_each_other(watched: Watched) -> None:
    for rank in (0, 1):
        watched.beat(rank, "compiling stage 2", patience_s=100)
    assert watched.hung_after(100) == {}
    assert list(watched.hung_after(1)) == [0, 1]


def test_two_that_say_the_same_without_patience_are_judged_as_before(watched: Watched) -> None:
    for rank in (0, 1):
        watched.beat(rank, "stepping")
    watched.now += 3
    watched.beat(0, "stepping")
    assert list(watched.hung_after(20)) == [1] and watched.now == 11


def test_who_holds_up_the_others_is_named_though_its_last_word_came_later(watched: Watched) -> None:
    """Rank 0 goes on to its next collective at once, while a slow machine has rank 1 speak half a second later."""
    watched.beat(0, "reporting")
    watched.beat(0, "stepping")
    watched.now += 0.5
    watched.beat(1, "reporting")
    found = watched.hung_after(20)
    assert next(iter(found)) == 1 and watched.now == 11.5


def test_a_watcher_that_slept_takes_nobody_for_hung() -> None:
    detector = HangDetector(SAFETY, from_step=5, now=0.0)
    working = Beat(1.0, "saving", 8, "node1", 1, 7, 1000.0)
    waiting = Beat(9.0, "stepping", 8, "node1", 1, 7)
    assert detector.hung([0, 1], {0: working, 1: waiting}, now=9.0) == {}
    detector.slept(3600.0)
    moved = {0: working._replace(number=8, patience_s=0.0), 1: waiting}
    assert detector.hung([0, 1], moved, now=3609.0) == {}
