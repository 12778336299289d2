"""One start of all workers of a run: watched until the last has ended, and the reason of the end found."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime

from tl_dist.config import Config
from tl_dist.files.atomic import write_atomically
from tl_dist.launcher.command import Command
from tl_dist.launcher.group import Exit, Group
from tl_dist.launcher.hang import HangDetector
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir, steps_in
from tl_dist.runs.heartbeats import Beat
from tl_dist.runs.records import NewRecords
from tl_dist.terminal.progress import Progress

Launch = Callable[[], AbstractContextManager[Sequence[Command]]]
"""Opens what workers need to find each other, for one attempt, and says what to start."""

RESTARTABLE = (ExitCode.PEER_LOST, ExitCode.INTERNAL)
ORDERLY = (ExitCode.DONE, ExitCode.REQUEUE)
_POLL_S = 0.1
_LOOK_S = 0.5  # between looks at the run directory, which may be far away
_BEATS_S = 1.0
_ASLEEP_S = 10.0
_LIKELY = {
    signal.SIGKILL: "most likely out of memory, else killed by hand",
    signal.SIGBUS: "most likely /dev/shm or the disk of a memory-mapped file is full",
    signal.SIGABRT: "a C++ library gave up",
}


@dataclass(frozen=True)
class End:
    """How an attempt ended. `rank` is the first worker that failed, None when all ended in order."""

    code: int
    rank: int | None = None
    cause: str = ""
    fix: str = ""
    lines: Sequence[str] = ()

    @property
    def restartable(self) -> bool:
        return self.code in RESTARTABLE or self.code > 128


class Signals:
    """What has been asked of this process by signals; the handler only counts."""

    def __init__(self) -> None:
        self.stop = False
        self.interrupts = 0

    @property
    def abort(self) -> bool:
        # A scheduler sends TERM and USR1 twice as a matter of course; only a person means it.
        return self.interrupts > 1

    def handle(self, number: int, frame: object) -> None:
        self.stop = True
        self.interrupts += number == signal.SIGINT


class Attempt:
    """One start of all workers, from their commands to the reason of their end."""

    def __init__(self, run: RunDir, cfg: Config, progress: Progress, signals: Signals) -> None:
        self._run = run
        self._cfg = cfg
        self._progress = progress
        self._signals = signals
        self._records = NewRecords(run.metrics_file)
        self._asked_to_stop = False
        self._from_step = max(newest_commit(run), 0)
        self._next_look = 0.0
        self._looked_at_beats = 0.0
        self._heard: dict[int, tuple[float, Beat]] = {}  # rank: when it made progress, and what it said
        self._detector = HangDetector(cfg.safety, from_step=self._from_step, now=time.monotonic())

    def watch(self, launch: Launch) -> End:
        """Start the workers and stay until the last one has ended."""
        number = self._run.next_attempt()
        heading = f"attempt {number}, {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, {socket.gethostname()}"
        self._run.clear_beats()
        with launch() as commands:
            record = {
                "attempt": number,
                "host": socket.gethostname(),
                "supervisor_pid": os.getpid(),
                "began": datetime.now(UTC).isoformat(timespec="seconds"),
                "from_step": self._from_step,
                "workers": len(commands),
                "argv": list(commands[0].argv),
            }
            path = self._run.attempts / f"{number:04d}.json"
            write_atomically(path, json.dumps(record, indent=1).encode())
            with Group(commands, self._run.rank_log, heading=heading) as group:
                end = self._until_the_end(group)
        self._show()
        reason = end.cause or ExitCode(end.code).name.lower()
        record |= {
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "exit_code": int(end.code),
            "rank": end.rank,
            "reason": reason,
        }
        write_atomically(path, json.dumps(record, indent=1).encode())
        return end

    def _until_the_end(self, group: Group) -> End:
        while True:
            new = group.poll()
            if any(exit.code not in ORDERLY for exit in new):
                return self._after_failure(group)
            if not group.alive:
                return self._in_order(group)
            if self._signals.abort:
                group.end(grace_s=0)
                return End(ExitCode.REQUEUE)
            if time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + _LOOK_S
                self._show()
                self._heed_signals()
                hung = self._hung(group)
                if hung:
                    return self._after_hang(group, hung)
            time.sleep(_POLL_S)

    def _in_order(self, group: Group) -> End:
        if any(exit.code == ExitCode.REQUEUE for exit in group.exits):
            return End(ExitCode.REQUEUE)
        if self._run.done is None:
            return End(
                ExitCode.INTERNAL,
                0,
                "all workers ended with exit code 0, but the run has no DONE marker",
                lines=group.last_lines(0),
            )
        return End(ExitCode.DONE)

    def _after_failure(self, group: Group) -> End:
        stop_asked = self._run.stop_requested()
        group.end()
        if not stop_asked:
            self._run.clear_stop()  # a worker that gets TERM asks for a stop; nobody else did
        first = first_failure(group.exits)
        lines = group.last_lines(first.rank)
        silent = [exit.rank for exit in group.exits if exit.asked]
        if first.code == ExitCode.PEER_LOST and silent:
            # All that ended by themselves are victims, so the one that did not notice anything is the cause.
            cause = f"did not react when rank {first.rank} lost a peer, and was killed"
            return End(ExitCode.PEER_LOST, silent[0], cause, lines=group.last_lines(silent[0]))
        return explained(first, lines)

    def _after_hang(self, group: Group, hung: Mapping[int, str]) -> End:
        stop_asked = self._run.stop_requested()
        group.dump_stacks(list(hung))
        group.end(grace_s=1.0)
        if not stop_asked:
            self._run.clear_stop()
        rank, how = next(iter(hung.items()))
        return End(ExitCode.PEER_LOST, rank, how, lines=group.last_lines(rank))

    def _hung(self, group: Group) -> dict[int, str]:
        """Workers without progress for too long, the one that holds up the others first, and what they did."""
        now = time.monotonic()
        since_s = now - self._looked_at_beats
        if since_s < min(_BEATS_S, self._cfg.safety.heartbeat_s):
            return {}
        if self._looked_at_beats and since_s > _ASLEEP_S:
            # This process was stopped, or the whole machine: that says nothing about the workers.
            self._detector.slept(since_s)
            self._heard = {rank: (at + since_s, beat) for rank, (at, beat) in self._heard.items()}
        self._looked_at_beats = now
        for rank, said in self._run.read_beats().items():
            if said.pid == group.pids.get(rank):
                self._heard[rank] = (now - said.age_s, said)
        beats = {rank: beat._replace(age_s=now - at) for rank, (at, beat) in self._heard.items()}
        hung = self._detector.hung(group.alive, beats, now=now)
        return {rank: f"{how}, and was killed" for rank, how in hung.items()}

    def _heed_signals(self) -> None:
        if self._signals.stop and not self._run.stop_requested():
            self._run.request_stop()
        if not self._asked_to_stop and self._run.stop_requested():
            self._asked_to_stop = True
            again = "; press Ctrl-C again to end at once" if self._signals.interrupts else ""
            self._progress.say(f"stopping after this step, saving{again}", style="yellow")

    def _show(self) -> None:
        for record in self._records.read():
            self._progress.show(record)


def newest_commit(run: RunDir) -> int:
    """The step of the newest commit, -1 before the first one."""
    return max((step for step, _ in steps_in(run.checkpoints)), default=-1)


def first_failure(exits: Sequence[Exit]) -> Exit:
    """The cause: the earliest failure that is not the loss of a peer; else the earliest loss."""
    failures = [exit for exit in exits if exit.code not in ORDERLY and not exit.asked]
    return next((exit for exit in failures if exit.code != ExitCode.PEER_LOST), failures[0])


def explained(exit: Exit, lines: Sequence[str]) -> End:
    """Why a worker ended: its own refusal where it said one, else what its exit code means."""
    for line in reversed(lines):
        match = re.fullmatch(r"(?:refused|failed): rank \d+: (.*?)(?: Fix: (.*))?", line.strip())
        if match:
            return End(exit.code, exit.rank, match[1].rstrip("."), match[2] or "", lines)
    if exit.code > 128:
        number = exit.code - 128
        name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
        likely = _LIKELY.get(signal.Signals(number)) if number in list(signal.Signals) else None
        cause = f"was ended by {name}" + (f" ({likely})" if likely else "")
        fix = "use fewer workers or accumulate more micro-batches." if number == signal.SIGKILL else ""
        return End(exit.code, exit.rank, cause, fix, lines)
    # A Python that cannot even start the worker ends with 1 or 2.
    code = exit.code if exit.code in list(ExitCode) else ExitCode.INTERNAL
    return End(code, exit.rank, f"ended with exit code {exit.code}", "", lines)
