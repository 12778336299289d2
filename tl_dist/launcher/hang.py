"""Detect workers that have made no progress for too long, from their heartbeats."""

from collections.abc import Iterable, Mapping

from tl_dist.config import SafetyConfig
from tl_dist.runs.heartbeats import Beat


class HangDetector:
    """Watch the workers of one attempt, which began at `now` from step `from_step`."""

    def __init__(self, safety: SafetyConfig, *, from_step: int, now: float) -> None:
        self._safety = safety
        self._from_step = from_step
        self._began = now
        self._waited: dict[int, float] = {}  # rank: when it last waited for a worker in a long phase

    def slept(self, s: float) -> None:
        """Discount `s` seconds in which the supervisor itself did not run."""
        self._began += s
        self._waited = {rank: at + s for rank, at in self._waited.items()}

    def hung(self, ranks: Iterable[int], beats: Mapping[int, Beat], *, now: float) -> dict[int, str]:
        """Return the silent workers among `ranks`, the one that blocks the others first, each with what it was doing.

        Returns none until a worker with the fewest beats is silent, too: the others wait for it, and its last beat may
        be a moment later than theirs. Before its first step of this attempt a worker has more time, to import, build
        and compile. A phase may have a patience of its own; while a worker is in such a phase, others with at least as
        many beats wait for it.
        """
        ranks = list(ranks)
        working = [beats[rank] for rank in ranks if rank in beats and beats[rank].patience_s]
        silent: list[tuple[int, float, int, str]] = []
        for rank in ranks:
            beat = beats.get(rank)
            if beat and not beat.patience_s and any(other.number <= beat.number for other in working):
                self._waited[rank] = now
            silent_s = now - max(self._waited.get(rank, self._began), now - beat.age_s if beat else self._began)
            if silent_s > self._limit_s(beat):
                doing = f"while {beat.phase}, at step {beat.step}" if beat else "before its first sign"
                how = f"stalled, without progress for {silent_s:.0f} s {doing}"
                silent.append((beat.number if beat else 0, -silent_s, rank, how))
        silent.sort()
        fewest_beats = min((beats[rank].number if rank in beats else 0 for rank in ranks), default=0)
        if silent and silent[0][0] > fewest_beats:
            return {}
        return {rank: how for _, _, rank, how in silent}

    def _limit_s(self, beat: Beat | None) -> float:
        trains = beat is not None and beat.step > self._from_step
        usual_s = self._safety.hang_s if trains else self._safety.first_step_s
        return max(usual_s, beat.patience_s if beat else 0.0)
