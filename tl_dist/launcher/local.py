"""Run the workers of a run as processes of this host, with a rendezvous where they need one.

Each leads a session of its own, so that a terminal's Ctrl-C reaches only the supervisor, and dies with the supervisor
(`die_with_parent`).
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

from tl_dist.config import Config
from tl_dist.files.atomic import open_to_append
from tl_dist.launcher import die_with_parent
from tl_dist.launcher.command import Command, are_processes, local_commands, num_processes, visible_gpus
from tl_dist.launcher.workers import Workers
from tl_dist.rendezvous.server import Rendezvous
from tl_dist.runs.exit_records import Exit

Launch = Callable[[], AbstractContextManager[Sequence[Command]]]
"""opens, for one attempt, what workers need to find each other, and gives the commands to start"""


@contextmanager
def local_launch(cfg: Config, run: Path, request: Path | None = None) -> Iterator[Sequence[Command]]:
    """Yield the commands of the workers on this host; `request` is the file with a task other than training."""
    num = num_processes(cfg, visible_gpus(os.environ))
    if not are_processes(cfg):
        yield local_commands(cfg, run, os.environ, processes=num, request=request)
        return
    # A new rendezvous for each attempt. Horovod of size 1 uses a rendezvous as well: one way for any number of workers.
    with Rendezvous([("localhost", num)], "127.0.0.1") as rendezvous:
        place = partial(rendezvous.worker_environment, env=os.environ)
        yield local_commands(cfg, run, os.environ, processes=num, place=place, request=request)


class Group(Workers):
    """Workers as processes. Create it in the main thread: they die with the thread that started them."""

    def _start(self, commands: Sequence[Command]) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for command in commands:
                with os.fdopen(open_to_append(self._log(command.rank)), "ab") as log:
                    self._processes[command.rank] = subprocess.Popen(
                        [
                            sys.executable,
                            "-I",
                            "-S",
                            die_with_parent.__file__,
                            str(os.getpid()),
                            *command.argv,
                        ],
                        env={**command.environment, **self._exit_records.environment},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
        except BaseException:
            self._ranks = list(self._processes)
            self.end(grace_s=0)
            raise

    @property
    def pids(self) -> Mapping[int, int]:
        """Return the process id of each rank."""
        return {rank: process.pid for rank, process in self._processes.items()}

    def _newly_ended(self) -> Iterator[Exit]:
        for rank in self.alive:
            # Reaped only in `_release`: while the zombie exists, no other process can get its process group's id.
            state = os.waitid(os.P_PID, self._processes[rank].pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if state is not None:
                code = state.si_status if state.si_code == os.CLD_EXITED else 128 + state.si_status
                records = [record for record in self._exit_records.read([rank]) if record.code == code]
                yield (records or [Exit(rank, code)])[0]._replace(asked=self._asked)

    def _signal(self, ranks: Sequence[int], number: signal.Signals) -> None:
        for rank in ranks:
            with suppress(ProcessLookupError):  # ended a moment ago
                os.killpg(self._processes[rank].pid, number)

    def _release(self) -> None:
        for rank, process in self._processes.items():
            if process.returncode is None:
                self._signal([rank], signal.SIGKILL)  # the group: a worker may have left children behind
                process.wait()
