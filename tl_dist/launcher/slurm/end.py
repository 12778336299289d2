"""What srun says at the end of a step, and what that means for the run. Pure functions."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from tl_dist.refusal import ExitCode

_TASKS_ENDED = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (.+?)(?: \(core dumped\))?")
_EXITED = re.compile(r"Exited with exit code (\d+)")
_BY_SIGNAL = {signal.strsignal(number): 128 + number for number in signal.valid_signals()}


@dataclass(frozen=True)
class TasksEnded:
    """One line of srun about tasks that did not end with 0. `code` is 128 + N after signal N."""

    host: str
    tasks: tuple[int, ...]
    code: int

    @property
    def by_signal(self) -> bool:
        return self.code > 128


def tasks_ended(line: str) -> TasksEnded | None:
    """What a line of srun's stderr says of lost tasks ("srun: error: node2: tasks 0-1: Killed"), or None."""
    match = _TASKS_ENDED.fullmatch(line.strip())
    if match is None:
        return None
    tasks: list[int] = []
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        tasks.extend(range(int(first), int(last or first) + 1))
    exited = _EXITED.fullmatch(match[3])
    # Slurm has words of its own for some ends, as "Out Of Memory": KILL in all of them.
    code = int(exited[1]) if exited else _BY_SIGNAL.get(match[3], 128 + signal.SIGKILL)
    return TasksEnded(match[1], tuple(tasks), code)


def attempt_code(returncode: int, ended: Sequence[TasksEnded], *, done: bool) -> ExitCode:
    """What an attempt's end means, from all failures that srun named and not from its own code alone.

    srun returns the highest code of its tasks, so that a worker that was killed after another one refused
    (137 > 78) would hide the reason. A worker's own refusal comes first, then a lost peer, then a requested stop; a
    signal alone is a lost worker. An end without failures counts as done only with the DONE marker.
    """
    codes = [end.code for end in ended if not end.by_signal]
    for code in codes:
        if code not in (ExitCode.REQUEUE, ExitCode.PEER_LOST):
            return ExitCode(code) if code in list(ExitCode) else ExitCode.INTERNAL  # 1: a traceback
    if codes:
        return ExitCode.PEER_LOST if ExitCode.PEER_LOST in codes else ExitCode.REQUEUE
    if ended or returncode:
        return ExitCode.PEER_LOST  # also when srun could not start, or lost a node
    return ExitCode.DONE if done else ExitCode.INTERNAL


def first_cause(ended: Sequence[TasksEnded], code: ExitCode) -> TasksEnded | None:
    """The end that decided: the first one with the attempt's code; of a lost peer the first by a signal."""
    exact = [end for end in ended if end.code == code and code != ExitCode.PEER_LOST]
    by_signal = [end for end in ended if end.by_signal and code == ExitCode.PEER_LOST]
    return next(iter(exact or by_signal or ended), None)
