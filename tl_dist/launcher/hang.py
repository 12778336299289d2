"""Which workers have made no progress for too long, from what they last said of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tl_dist.config import SafetyConfig
from tl_dist.runs.heartbeats import Beat


class HangDetector:
    """Watches the workers of one attempt, which began at `now` from step `from_step`."""

    def __init__(self, safety: SafetyConfig, *, from_step: int, now: float) -> None:
        self._safety = safety
        self._from_step = from_step
        self._began = now
        self._waited: dict[int, float] = {}  # rank: when it was last seen to wait for one that works

    def slept(self, s: float) -> None:
        """The watcher itself did not run for that long: it counts for nobody."""
        self._began += s
        self._waited = {rank: at + s for rank, at in self._waited.items()}

    def hung(self, ranks: Iterable[int], beats: Mapping[int, Beat], *, now: float) -> dict[int, str]:
        """The silent ones of `ranks`, the one that holds up the others first, with what they were doing.

        Nobody before one of those that have come least far is silent, too: the others wait for it, and it may have
        spoken a moment after them. Before its first step of this attempt a worker has more time: it imports, builds
        and compiles. A phase with a patience of its own has that, and while a worker is in it, others that have come
        as far wait for it.
        """
        ranks = list(ranks)
        working = [beats[rank] for rank in ranks if rank in beats and beats[rank].patience_s]
        found: list[tuple[int, float, int, str]] = []
        for rank in ranks:
            beat = beats.get(rank)
            if beat and not beat.patience_s and any(other.number <= beat.number for other in working):
                self._waited[rank] = now
            silent_s = now - max(
                self._waited.get(rank, self._began), now - beat.age_s if beat else self._began
            )
            if silent_s > self._limit_s(beat):
                doing = f"while {beat.phase}, at step {beat.step}" if beat else "before its first sign"
                how = f"stalled, without progress for {silent_s:.0f} s {doing}"
                found.append((beat.number if beat else 0, -silent_s, rank, how))
        found.sort()
        least_far = min((beats[rank].number if rank in beats else 0 for rank in ranks), default=0)
        if found and found[0][0] > least_far:
            return {}
        return {rank: how for _, _, rank, how in found}

    def _limit_s(self, beat: Beat | None) -> float:
        trains = beat is not None and beat.step > self._from_step
        usual_s = self._safety.hang_s if trains else self._safety.first_step_s
        return max(usual_s, beat.patience_s if beat else 0.0)
