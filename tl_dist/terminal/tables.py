"""What is shown of runs when they are not training: the end of one, and the table of all."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_dist.files.atomic import reason
from tl_dist.runs.directory import RunDir
from tl_dist.runs.records import flattered, records
from tl_dist.runs.table import RunSummary
from tl_dist.scores import evaluation, figures, groups
from tl_dist.terminal.progress import Record, confusion_table, evaluation_line

if TYPE_CHECKING:
    from rich.table import Table

    from tl_dist.terminal.console import Console

_DAMAGED = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
_MAX_CLASSES = 20
_FIGURES = {"test_accuracy": "test", "validation_accuracy": "validation", "loss": "loss"}


def show_end(run: RunDir, console: Console) -> None:
    """The figures of a finished run, where it is, and how to look at its curves."""
    # The last of each split.
    results = {str(r.get("split")): r for r in records(run.metrics_file) if r.get("event") == "evaluation"}
    final = results.get("test") or results.get("validation")
    if final is not None:
        try:
            show_evaluation(final, console)
        except _DAMAGED as error:
            damage = f"its last evaluation is damaged ({reason(error)})"
            console.say(f"{run.metrics_file}: {damage}", style="yellow")
    show_flattered(run.path, console)
    console.say(f"run directory: {relative(run.path)}")
    if any(run.tensorboard.glob("*tfevents*")):
        console.say(f"tensorboard --logdir {shlex.quote(relative(run.tensorboard))}")


def show_flattered(run: Path, console: Console, name: str = "") -> None:
    """Why figures of the run are too good, each behind `name`; nothing where they are not."""
    for text in flattered(run):
        console.say(f"{name}{text}", style="yellow")


def show_losses(runs: Mapping[str, RunDir], console: Console) -> None:
    """The last loss of each run: in training, and on the split that it held out."""
    for name, run in runs.items():
        last = {
            str(r.get("split", "train")): r
            for r in records(run.metrics_file)
            if r.get("event") in ("train", "evaluation") and isinstance(r.get("loss"), float)
        }
        losses = ", ".join(f"{split} {record['loss']:.4f}" for split, record in last.items())
        console.say(f"{name} {relative(run.path)}: loss {losses}")


def show_evaluation(record: Record, console: Console) -> None:
    """One evaluation: "x of N", the other figures, how far one split can be trusted, and its confusion matrix."""
    console.say(evaluation_line(record), style="bold")
    found = record.get("figures")
    if found:
        console.say(figures.summary_line(found))
        low, high = found["interval"]
        by = f" ({found['interval_by']})" if "interval_by" in found else ""
        console.say(f"one split: 95 % interval of the accuracy {low:.4f} to {high:.4f}{by}", style="dim")
    if found and "accuracy_at_threshold" in found:
        chosen = f"{found['threshold']:.3f}, chosen on the validation split"
        console.say(f"accuracy {found['accuracy_at_threshold']:.4f} at threshold {chosen}")
    if found and "never_seen" in found:
        console.say(evaluation.never_seen_line(found["never_seen"]), style="yellow")
    if found and "calibration" in found:
        console.say(calibration_line(found["calibration"]))
    confusion = confusion_table(record, console.width)
    if confusion is not None:
        console.print(confusion)
    _show_classes(record, console)
    for kind, rows in record.get("groups", {}).items():
        show_groups(kind, rows, console)


def calibration_line(found: Mapping[str, Any]) -> str:
    """What the temperature changes: "calibrated, temperature 1.830: log loss 0.402 to 0.361, ECE 0.084 to 0.021"."""
    names = {"log_loss": "log loss", "ece": "ECE"}
    changes = [
        f"{name} {found['before'][key]:.3f} to {found['after'][key]:.3f}"
        for key, name in names.items()
        if found["before"][key] is not None
    ]
    fitted = found.get("num_fitted", 0)  # which older records do not have
    flatters = f" (fitted to {fitted:,} of these very images: it flatters)" if fitted else ""
    return f"calibrated, temperature {found['temperature']:.3f}: {', '.join(changes)}{flatters}"


def _show_classes(record: Record, console: Console) -> None:
    """A row for each class that has examples, where the record has them; of many those of the lowest recall."""
    from tl_dist.terminal.console import plain

    rows = [row for row in record.get("classes", ()) if row["num_examples"]]
    shown = sorted(rows, key=lambda row: row["recall"])[:_MAX_CLASSES] if len(rows) > _MAX_CLASSES else rows
    if not rows:
        return
    table = narrow_table("class", "images", "recall", "95 % interval", "precision", "F1", folds=("class",))
    for row in shown:
        low, high = row["interval"]
        said = [f"{row[key]:.3f}" if row[key] is not None else "-" for key in ("recall", "precision", "f1")]
        table.add_row(
            plain(row["class"]), f"{row['num_examples']:,}", said[0], f"{low:.3f}-{high:.3f}", *said[1:]
        )
    console.print(table)
    if len(shown) < len(rows):
        console.say(f"the {len(shown)} of {len(rows)} classes with the lowest recall")


def show_groups(kind: str, rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """A row for each group, the lowest accuracy first, and what is to be thought of the worst."""
    from tl_dist.terminal.console import plain

    table = narrow_table(kind, "images", "accuracy", "95 % interval", "log loss", folds=(kind,))
    for row in rows[:_MAX_CLASSES]:
        low, high = row["interval"]
        figures_of = f"{row['accuracy']:.3f}", f"{low:.3f}-{high:.3f}", f"{row['log_loss']:.3f}"
        table.add_row(plain(row["name"]), f"{row['num_examples']:,}", *figures_of)
    console.print(table)
    if len(rows) > _MAX_CLASSES:
        console.say(f"the {_MAX_CLASSES} of {len(rows)} groups with the lowest accuracy")
    console.say(groups.worst_line(kind, rows))


def narrow_table(*columns: str, folds: Sequence[str] = ()) -> Table:
    """A table that fits into 80 columns: those named in `folds` go over several lines, and nothing is cut off."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name not in folds)
    return table


def column_groups(names: Sequence[str], width: int, console: Console, *, beside: int) -> list[Sequence[str]]:
    """The names of columns of this width, in as many tables as it takes; `beside` is the room for other columns."""
    at_once = max(1, (console.width - beside - 2) // (width + 1))
    return [names[first : first + at_once] for first in range(0, len(names), at_once)]


def show_runs(summaries: Sequence[RunSummary], console: Console) -> None:
    """One line for each run, the most recent first."""
    from tl_dist.terminal.console import plain

    table = narrow_table("run", "state", "step", "strategy", "last sign", "figures", folds=("run",))
    for run in summaries:
        colour = {"done": "green", "failed": "red", "running": "bold", "unreadable": "yellow"}.get(
            run.state, ""
        )
        shown = "\n".join(
            f"{name} {run.figures[key]:.4g}" for key, name in _FIGURES.items() if key in run.figures
        )
        cells = ["", "", "", ""]
        if not run.problem:
            workers = f"{run.strategy} x {run.workers}" if run.workers else run.strategy
            cells = [f"{run.step:,}", workers, ago(run.age_s), shown]
        table.add_row(plain(run.name), plain(run.state, colour), *cells)
    console.print(table)
    for run in summaries:
        if run.problem:
            console.say(f"{run.name}: {run.problem}", style="yellow")


def show_schema(console: Console) -> None:
    """Every key of a config: its default, what it holds and what that does."""
    from rich import box
    from rich.table import Table

    from tl_dist.config.reference import rows
    from tl_dist.terminal.console import plain

    table = Table("key", "default", "what it holds", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows():
        holds = row.holds + (f". {' '.join(row.meaning.split())}" if row.meaning else "")
        table.add_row(*(plain(cell) for cell in (row.key, row.default, holds)))
    console.print(table)


def show_remarks(remarks: Sequence[Mapping[str, Any]], console: Console) -> None:
    """What training does to some images, a line each."""
    for one in remarks:
        console.say(
            f"{one['count']:,} of {one['of']:,} {one['what']}; such as {one['example']}", style="yellow"
        )


def relative(path: Path) -> str:
    """The path as a person in the working directory would write it."""
    inside = path.absolute().is_relative_to(Path.cwd())
    return os.path.relpath(path) if inside else str(path)


def ago(seconds: float) -> str:
    """An age in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
