"""`tl-dist calibrate`: fit on the validation split what makes the probabilities of a run calibrated."""

from collections.abc import Callable
from pathlib import Path

from tl_dist import tasks
from tl_dist.config import file as config_file
from tl_dist.files.atomic import copy_into
from tl_dist.launcher import read_only
from tl_dist.launcher.task import Computation
from tl_dist.runs.directory import RunDir
from tl_dist.scores import calibration, neighbours, residuals, text
from tl_dist.scores.calibration import Calibration
from tl_dist.scores.residuals import Residuals
from tl_dist.tools.calibrate import Request, refuse_labels


def calibrate(path: Path, how: Computation, *, unknown: bool = False) -> Calibration | Residuals:
    """Calibrate a checkpoint; the result replaces an earlier one in the run, which may be in use.

    Of numbers it keeps how far they are from the truth. With `unknown`, also keep features of training images, which
    `tl-dist predict --unknown` compares images with.
    """
    run = RunDir.open(path)
    cfg = config_file.load(run.config_file)
    refuse_labels(cfg)
    if unknown:
        tasks.refuse_others(cfg, "--unknown is for classes")
    with read_only.directory() as place:
        read_only.work(run, Request(unknown=unknown), place, how, what="calibration")
        return keep(place, run)


def keep(place: Path, run: RunDir) -> Calibration | Residuals:
    """Copy what the workers left in `place` into the run, and return it."""
    of_numbers = (place / residuals.FILE).exists()
    result = Residuals.load(place / residuals.FILE) if of_numbers else calibration.load(place)
    assert result is not None  # the workers have succeeded
    for name in (neighbours.FILE, calibration.FILE, residuals.FILE):
        if (place / name).exists():
            copy_into(place / name, run.path / name)
    return result


def show(result: Calibration | Residuals, path: Path, say: Callable[[str], None]) -> None:
    """Print what was fitted, and what it changes."""
    if isinstance(result, Residuals):
        say(f"step {result.step:,}: kept how far its numbers are from the truth on {len(result.errors):,} images")
        say("from now on tl-dist predict --coverage 0.9 adds intervals that hold the truth at this rate")
        return
    say(
        f"step {result.step:,}: temperature {result.temperature:.3f}, "
        f"fitted on {len(result.labels):,} validation images"
    )
    figures = (RunDir.open(path).done or {}).get("figures", {}).get("validation", {})
    if "never_seen" in figures:
        say(f"{text.never_seen(figures['never_seen'])}; the temperature was fitted on the other classes")
    if result.temperature == 1:
        say("the network classifies all of them correctly, so they cannot tell how confident it should be")
    say("from now on predict, serve and export give calibrated probabilities of this checkpoint")
    say(f"to see the effect on the test split: tl-dist eval {path}")
