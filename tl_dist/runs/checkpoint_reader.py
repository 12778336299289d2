"""Find a run's checkpoints; skip damaged ones, and log that. Imports no TensorFlow."""

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
    """Read the checkpoint that `at` names: "last", "best", a step, or "": the best if the run keeps one, else the last.

    Returns None if the run has no checkpoint at all. Refuses a missing or invalid one, and what `restore` refuses.
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
            fix = "name another, as by --at last; checkpoint.best, and an evaluation, make one."
            raise Refusal(f"{run.path} has no best checkpoint.", fix=fix, code=ExitCode.USAGE)
        if newest is None or at == LAST or best in (None, newest.step):
            return newest
        try:
            return read(run, best, expected=expected)
        except Refusal:
            if newest.step == max((step for step, _ in steps_in(run.checkpoints)), default=newest.step):
                raise  # else the run's owner has replaced checkpoints meanwhile: try again


def refuse_unknown(at: str) -> None:
    """Refuse (64) a name that `find` does not accept."""
    if at not in ("", BEST, LAST) and not re.fullmatch("[0-9]{1,18}", at):
        what = f"'{at}' names no checkpoint."
        raise Refusal(what, fix="write best, last or the number of a step.", code=ExitCode.USAGE)


def read(run: RunDir, step: int, *, at_end: bool = False, expected: Expected | None = None) -> Checkpoint:
    """Read a step's checkpoint, or, with `at_end`, the one that the run ended with. Refuses an invalid one."""
    path = run.checkpoints / BEST
    if not at_end or not path.exists():
        path = run.checkpoints / step_name(step)
    if not path.exists():
        steps = ", ".join(str(number) for number, _ in reversed(steps_in(run.checkpoints)))
        fix = f"use one of {steps}." if steps else "train it first: tl-dist train CONFIG."
        raise Refusal(f"{run.path} has no checkpoint of step {step}.", fix=fix, code=ExitCode.USAGE)
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
    """Look up a step in facts that were read from a file; None if there is none."""
    for key in keys:
        try:
            facts = facts[key]
        except (LookupError, TypeError):
            return None
    return facts if isinstance(facts, int) else None


def restore(
    run: RunDir, *, expected: Expected | None = None, log: Callable[[str], object] = _LOGGER.warning
) -> Checkpoint | None:
    """Read the newest valid checkpoint, or return None if there never was one; change nothing on disk.

    Tells `log` of damaged ones. Refuses (78) if none is valid, or if its set of (path, dtype, shape) is not `expected`.
    """
    for _ in range(3):
        checkpoints = steps_in(run.checkpoints)
        passed_over: list[tuple[int, str]] = []
        for step, path in checkpoints:
            try:
                checkpoint = checkpoint_format.read(path, step, expected)
            except checkpoint_format.Invalid as problem:
                passed_over.append((step, f"{path.name} is not valid ({problem})"))
                continue
            for newer, why in passed_over:
                log(f"{why}; going back to {path.name}: {newer - step} steps are done again.")
            return checkpoint
        if not checkpoints:
            return None
        if steps_in(run.checkpoints) == checkpoints:
            break
        # The run's owner has replaced checkpoints meanwhile: look again.
    shown = "; ".join(why for _, why in passed_over[:3])
    fix = "restore the files from a copy, or move the checkpoints away to start from step 0."
    raise Refusal(f"{run.checkpoints}: {shown}; no checkpoint is valid.", fix=fix, code=ExitCode.UNSAFE)
