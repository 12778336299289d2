"""Show results of runs: the end of one, its evaluations, and the table of all."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from tl_dist.config.reference import rows as config_keys
from tl_dist.files.atomic import reason
from tl_dist.runs.directory import RunDir
from tl_dist.runs.records import flattered, records
from tl_dist.runs.table import RunSummary
from tl_dist.scores import text
from tl_dist.terminal.console import Console, plain
from tl_dist.terminal.progress import Record, confusion_table, evaluation_line

_DAMAGED = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
_MAX_CLASSES = 20
_COLOURS = {"done": "green", "failed": "red", "running": "bold", "unreadable": "yellow"}
_FIGURES = ("test", "validation", "loss")


def show_end(run: RunDir, console: Console) -> None:
    """Show the figures of a finished run, its directory, and the command that shows its curves."""
    # A dict keeps the last record of each split.
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
    """Show each reason why figures of the run are too good, after `name`; nothing if there is none."""
    for line in flattered(run):
        console.say(f"{name}{line}", style="yellow")


def show_losses(runs: Mapping[str, RunDir], console: Console) -> None:
    """Show the last loss of each run, in training and on its held-out splits."""
    for name, run in runs.items():
        last = {
            str(r.get("split", "train")): r
            for r in records(run.metrics_file)
            if r.get("event") in ("train", "evaluation") and isinstance(r.get("loss"), float)
        }
        losses = ", ".join(f"{split} {record['loss']:.4f}" for split, record in last.items())
        console.say(f"{name} {relative(run.path)}: loss {losses}")


def show_evaluation(record: Record, console: Console) -> None:
    """Show an evaluation: "x of N", the other figures, the interval, and the confusion matrix."""
    console.say(evaluation_line(record), style="bold")
    values = record.get("figures")
    if values:
        console.say(text.summary(values))
        main = values.get("main", "accuracy")
        ends = values["interval" if main == "accuracy" else f"{main}_interval"]
        by = f" ({values['interval_by']})" if "interval_by" in values else ""
        if ends is not None:
            what = f"the {text.FIGURES.get(main, main)}"
            console.say(f"one split: 95 % interval of {what} {text.span(ends)}{by}", style="dim")
    if values and "accuracy_at_threshold" in values:
        threshold = f"{values['threshold']:.3f}, chosen on the validation split"
        console.say(f"accuracy {values['accuracy_at_threshold']:.4f} at threshold {threshold}")
    if values and "never_seen" in values:
        console.say(text.never_seen(values["never_seen"]), style="yellow")
    if values and "calibration" in values:
        console.say(text.calibration(values["calibration"]))
    if values and "decision" in values:
        console.say(text.decision(values["decision"]))
    confusion = confusion_table(record, console.width)
    if confusion is not None:
        console.print(confusion)
    _show_classes(record, console)
    for kind, rows in record.get("groups", {}).items():
        show_groups(kind, rows, console)


def _show_classes(record: Record, console: Console) -> None:
    """Show a row for each class that has examples; of many classes, the ones with the lowest recall."""
    rows = [row for row in record.get("classes", ()) if row["num_examples"]]
    shown = sorted(rows, key=lambda row: row["recall"])[:_MAX_CLASSES] if len(rows) > _MAX_CLASSES else rows
    if not rows:
        return
    label = "label" if "average_precision" in rows[0] else "class"
    table = narrow_table(label, "images", "recall", "95 % interval", "precision", "F1", folds=(label,))
    for row in shown:
        low, high = row["interval"] or (0.0, 1.0)
        scores = [f"{row[key]:.3f}" if row[key] is not None else "-" for key in ("recall", "precision", "f1")]
        table.add_row(plain(row["class"]), f"{row['num_examples']:,}", scores[0], f"{low:.3f}-{high:.3f}", *scores[1:])
    console.print(table)
    if len(shown) < len(rows):
        console.say(f"the {len(shown)} of {len(rows)} classes with the lowest recall")


def show_groups(kind: str, rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Show a row for each group, lowest accuracy first, and whether the worst is more than chance."""
    table = narrow_table(kind, "images", "accuracy", "95 % interval", "log loss", folds=(kind,))
    for row in rows[:_MAX_CLASSES]:
        low, high = row["interval"]
        cells = f"{row['accuracy']:.3f}", f"{low:.3f}-{high:.3f}", f"{row['log_loss']:.3f}"
        table.add_row(plain(row["name"]), f"{row['num_examples']:,}", *cells)
    console.print(table)
    if len(rows) > _MAX_CLASSES:
        console.say(f"the {_MAX_CLASSES} of {len(rows)} groups with the lowest accuracy")
    console.say(text.worst_group(kind, rows))


def narrow_table(*columns: str, folds: Sequence[str] = ()) -> Table:
    """Return a table for 80 columns: columns named in `folds` wrap over several lines; nothing is cut off."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name not in folds)
    return table


def column_groups(names: Sequence[str], width: int, console: Console, *, beside: int) -> list[Sequence[str]]:
    """Split columns of this width into as many tables as fit; `beside` is the room that other columns take."""
    at_once = max(1, (console.width - beside - 2) // (width + 1))
    return [names[first : first + at_once] for first in range(0, len(names), at_once)]


def show_runs(summaries: Sequence[RunSummary], console: Console) -> None:
    """Show one line for each run, the most recent first."""
    table = narrow_table("run", "state", "step", "strategy", "last sign", "figures", folds=("run",))
    for run in summaries:
        shown = [(name, key) for name in _FIGURES for key in run.figures if key.partition("_")[0] == name]
        figures = [f"{name} {run.figures[key]:.4g}" for name, key in shown]
        cells = ["", "", "", ""]
        if not run.problem:
            workers = f"{run.strategy} x {run.workers}" if run.workers else run.strategy
            cells = [f"{run.step:,}", workers, ago(run.age_s), "\n".join(figures)]
        table.add_row(plain(run.name), plain(run.state, _COLOURS.get(run.state, "")), *cells)
    console.print(table)
    for run in summaries:
        if run.problem:
            console.say(f"{run.name}: {run.problem}", style="yellow")


def show_schema(console: Console) -> None:
    """Show every key of a config, its default, type and meaning."""
    table = Table("key", "default", "what it holds", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in config_keys():
        holds = row.holds + (f". {' '.join(row.meaning.split())}" if row.meaning else "")
        table.add_row(*(plain(cell) for cell in (row.key, row.default, holds)))
    console.print(table)


def show_remarks(remarks: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Show what decoding changes in some images, one line for each kind."""
    for remark in remarks:
        example = f"such as {remark['example']}"
        console.say(f"{remark['count']:,} of {remark['of']:,} {remark['what']}; {example}", style="yellow")


def relative(path: Path) -> str:
    """Return the path as the user would write it in the working directory."""
    inside = path.absolute().is_relative_to(Path.cwd())
    return os.path.relpath(path) if inside else str(path)


def ago(seconds: float) -> str:
    """Format an age in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
