"""Runs that one process trains one after another: the folds of a cross-validation on one device.

TensorFlow is started once for all of them. Each is a run of its own, with its commits, its figures and its DONE; what
a supervisor looks at, heartbeats, the request to stop and what is shown, is that of the run that leads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.worker import attempt
from tl_dist.worker.memory import available_bytes, held_bytes
from tl_dist.worker.setup import setup


class LedRun(RunDir):
    """A run that lives and stops with another one."""

    def __init__(self, path: Path, leader: RunDir) -> None:
        super().__init__(path)
        self._leader = leader

    def beat(self, rank: int, phase: str, step: int, patience_s: float = 0.0) -> None:
        self._leader.beat(rank, phase, step, patience_s)

    def stop_requested(self) -> bool:
        return self._leader.stop_requested()


def in_turn(leader: RunDir, names: Sequence[str], *, cores: int) -> ExitCode:
    """Train the runs of these names beside `leader`, those that are not done, in this order.

    DONE, or REQUEUE after a stop. Also DONE, after at least one of them, where what they leave behind in memory leaves
    no room for another: the rest is for a fresh process.
    """
    trained = largest = 0
    with leader.metrics_file.open("a", encoding="utf-8", buffering=1) as lines:

        def show(record: Mapping[str, Any]) -> None:
            lines.write(json.dumps(record) + "\n")

        for number, name in enumerate(names, start=1):
            RunDir.open(leader.path.parent / name)
            run = LedRun(leader.path.parent / name, leader)
            if run.done is not None:
                continue
            if trained and not has_room(largest, available_bytes()):
                return ExitCode.DONE
            leader.beat(0, "starting", 0)
            show({"event": "note", "text": f"{name}, {number} of {len(names)}"})
            before = held_bytes()
            keras.utils.clear_session()  # layers get the names that they have in a process of their own
            code = attempt.train(setup(run, cores=cores), listen=show)
            if code != ExitCode.DONE:
                return code
            trained += 1
            largest = max(largest, held_bytes() - before)
    return ExitCode.DONE


def has_room(largest: int, available: int) -> bool:
    """Whether one more run that takes as many bytes as the largest so far leaves as many free."""
    return 2 * largest < available
