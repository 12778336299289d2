"""The worker processes of one attempt on this host: started, looked at, and ended together.

Each is the leader of its own session, so a terminal's Ctrl-C reaches the supervisor alone, and is tethered to
the supervisor, so none outlives it (`die_with_parent`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tl_dist.files.atomic import open_to_append
from tl_dist.launcher import die_with_parent
from tl_dist.launcher.command import Command

GRACE_S = 7.0  # for workers to notice a lost peer by themselves: Gloo needs 0.2 s, MPI's shutdown a few
TERM_S = 2.0  # between TERM and KILL; workers ignore TERM, what they started may not
_POLL_S = 0.05


@dataclass(frozen=True)
class Exit:
    """How one worker ended. `code` is 128 + N after signal N, as a shell has it."""

    rank: int
    code: int
    asked: bool = False  # ended by us: a victim, never the cause


class Group:
    """Workers that live and die together. Start it from the main thread: they die with the thread that did.

    Each one's output is appended to `log(rank)`, below a line with `heading`.
    """

    def __init__(self, commands: Sequence[Command], log: Callable[[int], Path], *, heading: str = "") -> None:
        self._log = log
        self._heading = heading
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._log_starts: dict[int, int] = {}
        self._asked = False
        self.exits: list[Exit] = []
        """in order of time"""
        try:
            for command in commands:
                self._start(command)
        except BaseException:
            self.end(grace_s=0)
            raise

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(grace_s=0)

    @property
    def alive(self) -> list[int]:
        """Ranks that have not ended, as of the last `poll`."""
        return [rank for rank in self._processes if rank not in {end.rank for end in self.exits}]

    @property
    def pids(self) -> Mapping[int, int]:
        return {rank: process.pid for rank, process in self._processes.items()}

    def poll(self) -> list[Exit]:
        """The workers that ended since the last poll."""
        new = []
        for rank in self.alive:
            # Not reaped before the end of all: as long as the dead one is there, its group's id is taken.
            state = os.waitid(os.P_PID, self._processes[rank].pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if state is not None:
                code = state.si_status if state.si_code == os.CLD_EXITED else 128 + state.si_status
                new.append(Exit(rank, code, asked=self._asked))
        self.exits.extend(new)
        return new

    def send(self, rank: int, number: int) -> None:
        """A signal to one worker and to what it started."""
        with suppress(ProcessLookupError):  # ended a moment ago
            os.killpg(self._processes[rank].pid, number)

    def wait(self, seconds: float) -> bool:
        """Wait until all have ended, at most so long; whether they have."""
        deadline = time.monotonic() + seconds
        while self.poll() is not None and self.alive and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return not self.alive

    def end(self, *, grace_s: float | None = None) -> None:
        """Leave them `grace_s` to end by themselves, then TERM, then KILL; returns when none is left."""
        if not self.wait(GRACE_S if grace_s is None else grace_s):
            self._asked = True
            for number, seconds in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, 60.0)):
                for rank in self.alive:
                    self.send(rank, number)
                if self.wait(seconds):
                    break
        for rank in self._processes:
            if self._processes[rank].returncode is None:
                self.send(rank, signal.SIGKILL)  # what a worker started and left behind shares its group
                self._processes[rank].wait()

    def dump_stacks(self, ranks: Sequence[int], *, seconds: float = 2.0) -> None:
        """Make workers write the stack of each thread to their logs, which ends them."""
        self._asked = True
        for rank in ranks:
            self.send(rank, signal.SIGABRT)
            self.send(rank, signal.SIGCONT)  # a stopped process gets its signals when it goes on
        deadline = time.monotonic() + seconds
        while set(ranks) & set(self.alive) and time.monotonic() < deadline:
            self.poll()
            time.sleep(_POLL_S)

    def last_lines(self, rank: int, count: int = 20) -> list[str]:
        """The end of what a worker wrote in this attempt."""
        with suppress(OSError), self._log(rank).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_starts.get(rank, 0), size - 100_000))
            return file.read().decode(errors="replace").splitlines()[-count:]
        return []

    def _start(self, command: Command) -> None:
        path = self._log(command.rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_to_append(path), "ab") as log:
            if self._heading:
                log.write(f"--- {self._heading}, rank {command.rank} ---\n".encode())
                log.flush()
            self._log_starts[command.rank] = log.tell()
            self._processes[command.rank] = subprocess.Popen(
                [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()), *command.argv],
                env=dict(command.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
