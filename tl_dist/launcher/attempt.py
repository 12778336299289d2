"""Start all workers of a run once, watch them until the last has ended, and find out why."""

import json
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tl_dist.config import Config
from tl_dist.files.atomic import write_atomically
from tl_dist.launcher.classify_exits import ORDERLY, Outcome, classify
from tl_dist.launcher.hang import HangDetector
from tl_dist.launcher.local import Group, Launch
from tl_dist.launcher.workers import GRACE_S, Workers
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir, steps_in
from tl_dist.runs.exit_records import ExitRecords
from tl_dist.runs.heartbeats import Beat
from tl_dist.runs.records import NewRecords
from tl_dist.terminal.progress import Progress

_POLL_S = 0.1
_LOOK_S = 0.5  # between looks at the run directory, which may be on a network file system
_STOP_S = 1.0
_BEATS_S = 2.0
_BEATS_READ_PER_S = 100  # from a file server with other users
_ASLEEP_S = 10.0


class Signals:
    """Record the signals that this process gets; the handler only counts."""

    def __init__(self) -> None:
        self.stop = False
        self.interrupts = 0

    @property
    def abort(self) -> bool:
        """True after a second Ctrl-C. Other signals do not count: a scheduler routinely sends TERM and USR1 twice."""
        return self.interrupts > 1

    def handle(self, number: int, frame: object) -> None:
        """Count a signal; install it with `signal.signal`."""
        self.stop = True
        self.interrupts += number == signal.SIGINT


class Attempt:
    """One start of all workers, from their commands to the reason why they ended."""

    def __init__(
        self,
        run: RunDir,
        cfg: Config,
        progress: Progress,
        signals: Signals,
        *,
        start: type[Workers] = Group,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare an attempt. `start` is the class of its workers; `facts` go into the attempt's record."""
        self._run = run
        self._cfg = cfg
        self._progress = progress
        self._signals = signals
        self._start = start
        self._facts = facts or {}
        self._records = NewRecords(run.metrics_file)
        self._asked_to_stop = False
        self._from_step = max(newest_checkpoint(run), 0)
        self._next_look = 0.0
        self._next_look_for_stop = 0.0
        self._looked_at_beats = 0.0
        self._beats: dict[int, tuple[float, Beat]] = {}  # rank: time of its last progress, last heartbeat
        self._detector = HangDetector(cfg.safety, from_step=self._from_step, now=time.monotonic())

    def watch(self, launch: Launch) -> Outcome:
        """Start the workers; return how the attempt ended, after the last worker has."""
        number = self._run.next_attempt()
        heading = f"attempt {number}, {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, {socket.gethostname()}"
        exit_records = ExitRecords(self._run.attempts / f"{number:04d}")
        ExitRecords(self._run.attempts / f"{number - 1:04d}").clear()  # its supervisor may have been killed
        self._run.beats.clear()
        with launch() as commands:
            record = {
                "attempt": number,
                "host": socket.gethostname(),
                "supervisor_pid": os.getpid(),
                "began": datetime.now(UTC).isoformat(timespec="seconds"),
                "from_step": self._from_step,
                "workers": len(commands),
                "argv": list(commands[0].argv),
                **self._facts,
            }
            path = self._run.attempts / f"{number:04d}.json"
            write_atomically(path, json.dumps(record, indent=1).encode())
            with self._start(commands, self._run.rank_log, exit_records, heading=heading) as workers:
                outcome = self._until_the_end(workers)
            if outcome.rank is not None:
                outcome = replace(outcome, lines=workers.last_lines(outcome.rank))
        self._show()
        reason = outcome.cause or ExitCode(outcome.code).name.lower()
        record |= {
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "exit_code": int(outcome.code),
            "rank": outcome.rank,
            "reason": reason,
        }
        write_atomically(path, json.dumps(record, indent=1).encode())
        exit_records.clear()
        return outcome

    def _until_the_end(self, workers: Workers) -> Outcome:
        while True:
            new = workers.poll()
            if any(exit.code not in ORDERLY for exit in new):
                self._end_the_others(workers)
                return classify(workers.exits, done=False)
            if not workers.alive:
                return classify(workers.exits, done=self._run.done is not None)
            if self._signals.abort:
                workers.end(grace_s=0)
                return Outcome(ExitCode.REQUEUE)
            if time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + _LOOK_S
                self._show()
                self._heed_signals()
                hung = self._hung(workers)
                if hung:
                    self._end_the_others(workers, hung=list(hung))
                    rank, how = next(iter(hung.items()))
                    return Outcome(ExitCode.PEER_LOST, rank, how)
            time.sleep(_POLL_S)

    def _end_the_others(self, workers: Workers, *, hung: Sequence[int] = ()) -> None:
        """Give the others time to notice the failure; dump the stacks of any that does not into its log; end all."""
        stop_asked = self._run.stop_requested()
        if hung or not workers.wait(GRACE_S):
            workers.dump_stacks(hung or workers.alive)
        workers.end(grace_s=1.0)
        if not stop_asked:
            self._run.clear_stop()  # a worker that gets TERM requests a stop; no user did

    def _hung(self, workers: Workers) -> dict[int, str]:
        """Return the workers without progress for too long, the one that blocks the others first, and their phases."""
        now = time.monotonic()
        since_s = now - self._looked_at_beats
        every_s = max(min(_BEATS_S, self._cfg.safety.heartbeat_s), len(workers.alive) / _BEATS_READ_PER_S)
        if since_s < every_s:
            return {}
        if self._looked_at_beats and since_s > max(_ASLEEP_S, 2 * every_s):
            # This process, or the whole machine, was suspended: that tells nothing about the workers.
            self._detector.slept(since_s)
            self._beats = {rank: (at + since_s, beat) for rank, (at, beat) in self._beats.items()}
        self._looked_at_beats = now
        for rank, beat in self._run.beats.read().items():
            if beat.pid == workers.pids.get(rank, beat.pid):
                self._beats[rank] = (now - beat.age_s, beat)
        beats = {rank: beat._replace(age_s=now - at) for rank, (at, beat) in self._beats.items()}
        hung = self._detector.hung(workers.alive, beats, now=now)
        return {rank: f"{how}, and was killed" for rank, how in hung.items()}

    def _heed_signals(self) -> None:
        if self._signals.stop and not self._asked_to_stop and not self._run.stop_requested():
            self._run.request_stop()
            self._next_look_for_stop = 0.0
        if self._asked_to_stop or time.monotonic() < self._next_look_for_stop:
            return
        self._next_look_for_stop = time.monotonic() + _STOP_S
        if self._run.stop_requested():
            self._asked_to_stop = True
            again = "; press Ctrl-C again to end at once" if self._signals.interrupts else ""
            self._progress.say(f"stopping after this step, saving{again}", style="yellow")

    def _show(self) -> None:
        for record in self._records.read():
            self._progress.show(record)


def newest_checkpoint(run: RunDir) -> int:
    """Return the step of the newest checkpoint, -1 before the first one."""
    return max((step for step, _ in steps_in(run.checkpoints)), default=-1)
