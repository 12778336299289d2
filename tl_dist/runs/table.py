"""Summarise the runs in a directory, one line each: their state, step and figures."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tl_dist.config import file as config_file
from tl_dist.config.model_selection import FIGURES
from tl_dist.files.atomic import children, reason
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir, read_json, steps_in
from tl_dist.runs.lock import holder
from tl_dist.runs.records import records


@dataclass(frozen=True)
class RunSummary:
    """One line in the table of runs."""

    name: str
    state: str  # running, done, failed (its last attempt says so), stopped or unreadable
    step: int = 0
    strategy: str = "?"
    workers: int | None = None
    age_s: float = float("inf")  # since the last change of a file
    figures: Mapping[str, float] = field(default_factory=dict)
    """last: loss, SPLIT_FIGURE; best: best_SPLIT_FIGURE, of the task's first figure, such as test_accuracy"""
    problem: str = ""
    """why the run cannot be read, as if it is another user's"""


def runs(root: str | Path) -> list[RunSummary]:
    """Return every run below `root`, the most recent first, unreadable ones last; refuse (64) an unreadable root."""
    try:
        paths = children(Path(root).resolve())
    except OSError as error:
        what = f"{root} cannot be read ({reason(error)})."
        raise Refusal(what, fix="name a directory that you may read.", code=ExitCode.USAGE) from error
    summaries = [summary for path in paths if (summary := _listed(path)) is not None]
    return sorted(summaries, key=lambda summary: (summary.age_s, summary.name))


def _listed(path: Path) -> RunSummary | None:
    """Summarise the run at `path`; None if it is no run."""
    try:
        return _summary(RunDir(path)) if (path / "config.yaml").is_file() else None
    except OSError as error:
        return RunSummary(path.name, "unreadable", problem=error.strerror or str(error))
    except Refusal as refusal:
        return RunSummary(path.name, "unreadable", problem=refusal.what)


def _summary(run: RunDir) -> RunSummary:
    config = None
    with suppress(Refusal):
        config = config_file.load(run.config_file, imports=False)
    step, figures = _metrics(run.metrics_file)
    touched = [run.config_file, run.metrics_file, run.checkpoints, run.done_file, *children(run.lock_dir)]
    newest_s = max((path.lstat().st_mtime for path in touched if os.path.lexists(path)), default=0.0)
    return RunSummary(
        name=run.name,
        state=state_of(run),
        step=max([step, *(number for number, _ in steps_in(run.checkpoints))]),
        strategy=config.strategy if config else "?",
        workers=config.workers if config else None,
        age_s=max(0.0, time.time() - newest_s),
        figures=figures,
    )


def state_of(run: RunDir) -> str:
    """Return the state of a run: running, done, failed (by the record of its last attempt) or stopped."""
    attempt = None
    with suppress(Refusal, ValueError):
        attempt = read_json(max(path for path in children(run.attempts) if path.suffix == ".json"))
    if run.done_file.exists():
        return "done"
    if holder(run):
        return "running"
    orderly = (attempt or {}).get("exit_code") in (None, ExitCode.DONE, ExitCode.REQUEUE)
    return "stopped" if orderly else "failed"


def _metrics(path: Path) -> tuple[int, dict[str, float]]:
    """Return the last recorded step, and the figures for one line of a table."""
    step = 0
    figures: dict[str, float] = {}
    for record in records(path):
        step = record.get("step", step)
        with suppress(KeyError, TypeError, ValueError, OverflowError):
            if record["event"] == "train":
                figures["loss"] = float(record["loss"])
            elif record["event"] == "evaluation":
                known = {"accuracy": record["accuracy"], **(record.get("figures") or {})}
                main = known.get("main", "accuracy")
                name, value = f"{record['split']}_{main}", float(known[main])
                figures[name] = value
                better = min if FIGURES[main] == "min" else max
                figures[f"best_{name}"] = better(value, figures.get(f"best_{name}", value))
    return step, figures
