"""Workers that are processes of this host.

Each is the leader of its own session, so a terminal's Ctrl-C reaches the supervisor alone, and it dies with the
supervisor, so none outlives it (`die_with_parent`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tl_dist.files.atomic import open_to_append
from tl_dist.launcher import die_with_parent
from tl_dist.launcher.command import Command
from tl_dist.launcher.workers import Exit, Workers
from tl_dist.runs.exit_records import ExitRecords


class Group(Workers):
    """The processes. Start it from the main thread: they die with the thread that did."""

    def __init__(
        self,
        commands: Sequence[Command],
        log: Callable[[int], Path],
        exit_records: ExitRecords,
        *,
        heading: str = "",
    ) -> None:
        super().__init__(commands, log, exit_records, heading=heading)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for command in commands:
                self._start(command)
        except BaseException:
            self._ranks = list(self._processes)
            self.end(grace_s=0)
            raise

    @property
    def pids(self) -> Mapping[int, int]:
        return {rank: process.pid for rank, process in self._processes.items()}

    def _newly_ended(self) -> Iterator[Exit]:
        for rank in self.alive:
            # Not reaped before the end of all: as long as the dead one is there, its group's id is taken.
            state = os.waitid(os.P_PID, self._processes[rank].pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if state is not None:
                code = state.si_status if state.si_code == os.CLD_EXITED else 128 + state.si_status
                said = [record for record in self._exit_records.read([rank]) if record.code == code]
                what, fix = (said[0].what, said[0].fix) if said else ("", "")
                yield Exit(rank, code, self._asked, what, fix)

    def _signal(self, ranks: Sequence[int], number: signal.Signals) -> None:
        for rank in ranks:
            with suppress(ProcessLookupError):  # ended a moment ago
                os.killpg(self._processes[rank].pid, number)

    def _release(self) -> None:
        for rank, process in self._processes.items():
            if process.returncode is None:
                self._signal([rank], signal.SIGKILL)  # what a worker started and left behind shares its group
                process.wait()

    def _start(self, command: Command) -> None:
        with os.fdopen(open_to_append(self._log(command.rank)), "ab") as log:
            self._processes[command.rank] = subprocess.Popen(
                [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()), *command.argv],
                env={**command.environment, **self._exit_records.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
