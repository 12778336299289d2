"""Define the workers of one attempt, wherever they run: report those that have ended, and end the others.

`local.Group` runs them as processes of this host, `slurm.driver.Step` as the tasks of one srun.
"""

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tl_dist.files.atomic import open_to_append
from tl_dist.launcher.command import Command
from tl_dist.runs.exit_records import Exit, ExitRecords

GRACE_S = 7.0  # for workers to notice a lost peer by themselves: Gloo needs 0.2 s, MPI's shutdown a few
TERM_S = 2.0  # between TERM and KILL; workers ignore TERM, their children may not
_STACKS_S = 3.0
_POLL_S = 0.05


class Workers(ABC):
    """Workers that live and die together; constructing the object starts them.

    Each worker's output is appended to `log(rank)`, below a line with `heading`; `exit_records` tell why it ended.
    """

    def __init__(
        self,
        commands: Sequence[Command],
        log: Callable[[int], Path],
        exit_records: ExitRecords,
        *,
        heading: str = "",
    ) -> None:
        self._log = log
        self._exit_records = exit_records
        self._ranks = [command.rank for command in commands]
        self._log_starts = {rank: self._begin_log(log(rank), rank, heading) for rank in self._ranks}
        self._asked = False
        self.exits: list[Exit] = []
        """in order of time"""
        self._start(commands)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(grace_s=0)

    @property
    def pids(self) -> Mapping[int, int]:
        """Return the process id of each rank, if the processes are on this host."""
        return {}

    @property
    def alive(self) -> list[int]:
        """Return the ranks that have not ended, as of the last `poll`."""
        ended = {exit.rank for exit in self.exits}
        return [rank for rank in self._ranks if rank not in ended]

    def poll(self) -> list[Exit]:
        """Return the workers that ended since the last poll."""
        new = list(self._newly_ended())
        self.exits.extend(new)
        return new

    def wait(self, seconds: float) -> bool:
        """Wait until all have ended, for at most so long; return True if they have."""
        return self._wait_for(self._ranks, seconds)

    def end(self, *, grace_s: float | None = None) -> None:
        """Give workers `grace_s` to end by themselves, then send TERM, then KILL; return when none is left."""
        if not self.wait(GRACE_S if grace_s is None else grace_s):
            self._asked = True
            for number, seconds in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, 60.0)):
                self._signal(self.alive, number)
                if self.wait(seconds):
                    break
        self._release()

    def dump_stacks(self, ranks: Sequence[int]) -> None:
        """Make workers write the stack of each thread to their logs, which ends them."""
        self._asked = True
        self._signal(ranks, signal.SIGABRT)
        self._signal(ranks, signal.SIGCONT)  # a stopped process handles its signals when it is continued
        self._wait_for(ranks, _STACKS_S)

    def last_lines(self, rank: int, count: int = 20) -> list[str]:
        """Return the last lines that a worker wrote in this attempt."""
        with suppress(OSError), self._log(rank).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_starts[rank], size - 100_000))
            return file.read().decode(errors="replace").splitlines()[-count:]
        return []

    @abstractmethod
    def _start(self, commands: Sequence[Command]) -> None:
        """Start all workers, or none."""

    @abstractmethod
    def _newly_ended(self) -> Iterator[Exit]:
        """Yield the `alive` workers that have ended."""

    @abstractmethod
    def _signal(self, ranks: Sequence[int], number: signal.Signals) -> None:
        """Send a signal at least to these workers and their children."""

    @abstractmethod
    def _release(self) -> None:
        """Wait for killed workers, and release their resources."""

    def _wait_for(self, ranks: Sequence[int], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while True:
            self.poll()
            left = set(ranks) & set(self.alive)
            if not left or time.monotonic() >= deadline:
                return not left
            time.sleep(_POLL_S)

    @staticmethod
    def _begin_log(path: Path, rank: int, heading: str) -> int:
        """Write the heading of this attempt; return the offset in the log at which the worker's output begins."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_to_append(path), "ab") as log:
            if heading:
                log.write(f"--- {heading}, rank {rank} ---\n".encode())
            return log.tell()
