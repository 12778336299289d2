"""Failpoints: named places where a test makes a process die, stop, wait or fail. Free when none is set.

`TL_FAILPOINT=NAME[@RANK][:N]=ACTION` (several, separated by commas) acts when NAME is reached: the Nth time, or every
time; in the worker RANK, or in every worker. Actions: `kill` (SIGKILL), `stop` (SIGSTOP), `raise`, `sleep=S` (seconds),
`corrupt` (flips a bit of the file, or of the largest file in the directory, that the place passes). Refused unless
`TL_ALLOW_FAILPOINTS=1` is set too: nobody should lose a run to a forgotten variable.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tl_dist.refusal import ExitCode, Refusal

_FORM = re.compile(
    r"(?P<name>[a-z_.]+)(@(?P<rank>\d{1,6}))?(:(?P<nth>\d{1,9}))?="
    r"(?P<action>kill|stop|raise|corrupt|sleep=(?P<seconds>\d{1,6}(\.\d{1,6})?))"
)


class FailpointReached(Exception):
    """Raised by the action `raise`."""


@dataclass
class _Rule:
    name: str
    rank: int | None
    nth: int | None
    action: str
    seconds: float
    reached: int = 0

    def applies(self, name: str, rank: int | None) -> bool:
        if name != self.name or self.rank not in (None, rank):
            return False
        self.reached += 1
        return self.nth in (None, self.reached)


class Failpoint:
    """Called with the name of the place that was reached, and the file or directory that it concerns."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        text = environment.get("TL_FAILPOINT", "")
        self._rank: int | None = None
        self._refusal: Refusal | None = None
        self._rules: list[_Rule] = []
        if text and environment.get("TL_ALLOW_FAILPOINTS") != "1":
            self._refuse("TL_FAILPOINT is set: this process would fail on purpose.", "unset TL_FAILPOINT.")
        for part in text.split(",") if text else ():
            form = _FORM.fullmatch(part)
            if form is None:
                self._refuse(
                    f"TL_FAILPOINT: '{part}' cannot be read.",
                    "write NAME[@RANK][:N]=kill|stop|raise|sleep=S|corrupt.",
                )
                continue
            rank, nth = (int(form[key]) if form[key] else None for key in ("rank", "nth"))
            action = form["action"].partition("=")[0]
            self._rules.append(_Rule(form["name"], rank, nth, action, float(form["seconds"] or 0)))

    def set_rank(self, rank: int) -> None:
        """Set this worker's rank; raises the Refusal if the environment variables are wrong."""
        self._rank = rank
        self("worker.rank_known")

    def __call__(self, name: str, path: Path | None = None) -> None:
        """Act by the rules for the place `name`."""
        if self._refusal is not None:
            raise self._refusal  # not at import, where nothing would turn it into one line and an exit code
        for rule in self._rules:
            if rule.applies(name, self._rank):
                _act(rule, path)

    def names(self, name: str) -> bool:
        """Return whether a rule concerns this place, so that costly preparation can be skipped otherwise."""
        return any(rule.name == name for rule in self._rules)

    def _refuse(self, what: str, fix: str) -> None:
        self._refusal = Refusal(what, fix=fix, code=ExitCode.USAGE)


def _act(rule: _Rule, path: Path | None) -> None:
    if rule.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif rule.action == "stop":
        # To this thread: a signal to the process may be taken by another thread, while this one keeps running.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    elif rule.action == "raise":
        raise FailpointReached(rule.name)
    elif rule.action == "sleep":
        time.sleep(rule.seconds)
    elif rule.action == "corrupt" and path is not None:
        _flip_a_bit(path)


def _flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file, or of the largest file in a directory."""
    if path.is_dir():
        files = [entry for entry in path.iterdir() if entry.is_file()]
        path = max(files, key=lambda entry: entry.stat().st_size)
    with path.open("r+b") as file:
        middle = path.stat().st_size // 2
        file.seek(middle)
        byte = file.read(1)
        file.seek(middle)
        file.write(bytes([byte[0] ^ 1]))


failpoint = Failpoint(os.environ)
set_rank = failpoint.set_rank
