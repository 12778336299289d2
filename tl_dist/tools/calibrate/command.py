"""`tl-dist calibrate`: fit on the validation split what makes the statements of a run about single images honest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tl_dist.files.atomic import copy_into
from tl_dist.launcher import read_only
from tl_dist.launcher.task import Computation
from tl_dist.runs.directory import RunDir
from tl_dist.scores import calibration, evaluation, neighbours
from tl_dist.scores.calibration import Calibration
from tl_dist.tools.calibrate import Request


def calibrate(path: Path, how: Computation, *, unknown: bool = False) -> Calibration:
    """That of a checkpoint, which takes the place of an earlier one in the run. The run may be in use.

    With `unknown` the features of training images are kept as well.
    """
    run = RunDir.open(path)
    with read_only.directory() as place:
        read_only.work(run, Request(unknown=unknown), place, how, what="calibration")
        return keep(place, run)


def keep(place: Path, run: RunDir) -> Calibration:
    """Put what the workers have left in `place` into the run."""
    found = calibration.load(place)
    assert found is not None  # the workers have ended well
    for name in (neighbours.FILE, calibration.FILE):
        if (place / name).exists():
            copy_into(place / name, run.path / name)
    return found


def show(found: Calibration, path: Path, say: Callable[[str], None]) -> None:
    """What was fitted, and what comes of it."""
    say(
        f"step {found.step:,}: temperature {found.temperature:.3f}, fitted on {len(found.labels):,} validation images"
    )
    of_split = (RunDir.open(path).done or {}).get("figures", {}).get("validation", {})
    if "never_seen" in of_split:
        say(f"{evaluation.never_seen_line(of_split['never_seen'])}; the temperature is that of the others")
    if found.temperature == 1:
        say("the network is right on all of them: they do not show how sure it may be")
    say("from now on predict, serve and export give calibrated probabilities of this checkpoint")
    say(f"what that changes on the test split: tl-dist eval {path}")
