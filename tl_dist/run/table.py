"""The runs in a directory, one line each: what became of them, how far they are, their figures."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tl_dist.config import file as config_file
from tl_dist.durable import children
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.run import RunDir, read_json, steps_in
from tl_dist.run.lock import holder


@dataclass(frozen=True)
class RunSummary:
    """One line of the table of runs."""

    name: str
    state: str  # running, done, failed (its last attempt says so) or stopped
    step: int
    strategy: str
    workers: int | None
    age_s: float  # since something last happened
    figures: Mapping[str, float]  # last: loss, SPLIT_accuracy; best: best_SPLIT_accuracy


def runs(root: str | Path) -> list[RunSummary]:
    """Every run below `root`, the most recent first."""
    found = [RunDir(path) for path in children(Path(root)) if (path / "config.yaml").is_file()]
    return sorted((_summary(run) for run in found), key=lambda summary: summary.age_s)


def _summary(run: RunDir) -> RunSummary:
    config, attempt = None, None
    with suppress(Refusal):
        config = config_file.load(run.config_file)
    with suppress(Refusal, ValueError):
        attempt = read_json(max(path for path in children(run.attempts) if path.suffix == ".json"))
    if run.done_file.exists():
        state = "done"
    elif holder(run):
        state = "running"
    elif (attempt or {}).get("exit_code") in (None, ExitCode.DONE, ExitCode.REQUEUE):
        state = "stopped"
    else:
        state = "failed"
    step, figures = _metrics(run.metrics_file)
    touched = [run.config_file, run.metrics_file, run.checkpoints, run.done_file, *children(run.lock_dir)]
    newest_s = max((path.lstat().st_mtime for path in touched if os.path.lexists(path)), default=0.0)
    return RunSummary(
        name=run.name,
        state=state,
        step=max([step, *(number for number, _ in steps_in(run.checkpoints))]),
        strategy=config.strategy if config else "?",
        workers=config.workers if config else None,
        age_s=max(0.0, time.time() - newest_s),
        figures=figures,
    )


def _metrics(path: Path) -> tuple[int, dict[str, float]]:
    """The last step that was reported, and the figures of a run for one line of a table."""
    step, figures = 0, {}
    with suppress(OSError), path.open("rb") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                record = json.loads(line)
                step = record.get("step", step)
                if record["event"] == "train":
                    figures["loss"] = record["loss"]
                elif record["event"] == "evaluation":
                    name = f"{record['split']}_accuracy"
                    figures[name] = record["accuracy"]
                    figures[f"best_{name}"] = max(record["accuracy"], figures.get(f"best_{name}", 0.0))
    return step, figures
