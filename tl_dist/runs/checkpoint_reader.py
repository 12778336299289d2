"""The newest valid commit of a run; what is damaged is passed over, and said. Imports no TensorFlow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint_format
from tl_dist.runs.checkpoint_format import Commit, Expected
from tl_dist.runs.directory import RunDir, steps_in

_LOGGER = logging.getLogger(__name__)


def restore(
    run_or_dir: RunDir | str | Path,
    *,
    expected: Expected | None = None,
    strict: bool = False,
    log: Callable[[str], object] = _LOGGER.warning,
) -> Commit | None:
    """The newest valid commit, or None if there never was one; nothing on the disk is changed.

    Damaged commits are passed over, and `log` is told which, why, and what is used instead; with `strict`
    the first one is refused. Refused as well: commits of which none is valid, and a set of (path, dtype,
    shape) that is not exactly `expected`, a mapping from path to dtype name and shape.
    """
    directory = run_or_dir.checkpoints if isinstance(run_or_dir, RunDir) else Path(run_or_dir)
    for _ in range(3):
        commits = steps_in(directory)
        passed_over: list[tuple[int, str]] = []
        for step, path in commits:
            try:
                found = checkpoint_format.read(path, step, expected)
            except checkpoint_format.Invalid as problem:
                passed_over.append((step, f"{path.name} is not valid ({problem})"))
                if strict:
                    break
                continue
            for newer, why in passed_over:
                log(f"{why}; going back to {path.name}: {newer - step} steps are done again.")
            return found
        if not commits:
            return None
        if steps_in(directory) == commits:
            break
        # Their owner has replaced commits while they were read here: look again.
    shown = "; ".join(why for _, why in passed_over[:3])
    raise Refusal(
        f"{directory}: {shown}{'; no commit is valid' if not strict else ''}.",
        fix="restore the files from a copy, or move the commits away to start from step 0.",
        code=ExitCode.UNSAFE,
    )
