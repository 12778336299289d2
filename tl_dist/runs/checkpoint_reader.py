"""The newest valid checkpoint of a run; what is damaged is passed over, and said. Imports no TensorFlow."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint_format
from tl_dist.runs.checkpoint_format import BEST, NEEDS, Checkpoint, Expected
from tl_dist.runs.directory import RunDir, step_name, steps_in

_LOGGER = logging.getLogger(__name__)
LAST = "last"


def find(
    run: RunDir,
    at: str = "",
    *,
    expected: Expected | None = None,
    log: Callable[[str], object] = _LOGGER.warning,
) -> Checkpoint | None:
    """The checkpoint that `at` names: "last", "best", the number of a step, or "": the best where the run keeps one.

    None where the run has none at all. Refuses what is not there or not valid, and what `restore` refuses.
    """
    refuse_unknown(at)
    if at in ("", BEST) and (step := _step(run.done or {}, "best", "step")) is not None:
        return read(run, step, at_end=True, expected=expected)
    if at not in ("", BEST, LAST):
        return read(run, int(at), expected=expected)
    while True:
        newest = restore(run, expected=expected, log=log)
        best = None if newest is None else _step(newest.meta, NEEDS, 0)
        if newest is not None and best is None and at == BEST:
            raise Refusal(
                f"{run.path} has no best checkpoint.",
                fix="name another, as by --at last; checkpoint.best, and an evaluation, make one.",
                code=ExitCode.USAGE,
            )
        if newest is None or at == LAST or best in (None, newest.step):
            return newest
        try:
            return read(run, best, expected=expected)
        except Refusal:
            if newest.step == max((step for step, _ in steps_in(run.checkpoints)), default=newest.step):
                raise  # else its owner has replaced checkpoints while they were read here


def refuse_unknown(at: str) -> None:
    """Refuses what is none of the names that `find` takes."""
    if at not in ("", BEST, LAST) and not re.fullmatch("[0-9]{1,18}", at):
        raise Refusal(
            f"'{at}' names no checkpoint.",
            fix="write best, last or the number of a step.",
            code=ExitCode.USAGE,
        )


def read(run: RunDir, step: int, *, at_end: bool = False, expected: Expected | None = None) -> Checkpoint:
    """The checkpoint of a step; with `at_end` what the run ended with, where that differs. Refuses an invalid one."""
    path = run.checkpoints / BEST
    if not at_end or not path.exists():
        path = run.checkpoints / step_name(step)
    if not path.exists():
        there = ", ".join(str(number) for number, _ in reversed(steps_in(run.checkpoints)))
        raise Refusal(
            f"{run.path} has no checkpoint of step {step}.",
            fix=f"those that are kept: {there}." if there else "train it first: tl-dist train CONFIG.",
            code=ExitCode.USAGE,
        )
    try:
        return checkpoint_format.read(path, step, expected)
    except checkpoint_format.Invalid as problem:
        raise Refusal(
            f"{path} is not valid ({problem}).",
            fix="restore its files from a copy; or move away all checkpoints from it on, and DONE: training them again "
            "gives the same.",
            code=ExitCode.UNSAFE,
        ) from problem


def _step(facts: Any, *keys: str | int) -> int | None:
    """A step within facts that were read from a file; None where there is none."""
    for key in keys:
        try:
            facts = facts[key]
        except (LookupError, TypeError):
            return None
    return facts if isinstance(facts, int) else None


def restore(
    run: RunDir,
    *,
    expected: Expected | None = None,
    log: Callable[[str], object] = _LOGGER.warning,
) -> Checkpoint | None:
    """The newest valid checkpoint, or None if there never was one; nothing on the disk is changed.

    Damaged checkpoints are passed over, and `log` is told which, why, and what is used instead. Refused are
    checkpoints of which none is valid, and a set of (path, dtype, shape) that is not exactly `expected`, a mapping
    from path to dtype name and shape.
    """
    for _ in range(3):
        checkpoints = steps_in(run.checkpoints)
        passed_over: list[tuple[int, str]] = []
        for step, path in checkpoints:
            try:
                found = checkpoint_format.read(path, step, expected)
            except checkpoint_format.Invalid as problem:
                passed_over.append((step, f"{path.name} is not valid ({problem})"))
                continue
            for newer, why in passed_over:
                log(f"{why}; going back to {path.name}: {newer - step} steps are done again.")
            return found
        if not checkpoints:
            return None
        if steps_in(run.checkpoints) == checkpoints:
            break
        # Their owner has replaced checkpoints while they were read here: look again.
    shown = "; ".join(why for _, why in passed_over[:3])
    raise Refusal(
        f"{run.checkpoints}: {shown}; no checkpoint is valid.",
        fix="restore the files from a copy, or move the checkpoints away to start from step 0.",
        code=ExitCode.UNSAFE,
    )
