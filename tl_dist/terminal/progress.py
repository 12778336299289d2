"""Show the progress of a run: one live line on a terminal, a plain line at intervals elsewhere.

Everything shown comes from `metrics.jsonl`: the supervisor, another process, shows the same as rank 0 does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import RenderableType
from rich.live import Live
from rich.table import Table

from tl_dist.refusal import printable
from tl_dist.scores import text
from tl_dist.terminal.console import Console, plain

Record = Mapping[str, Any]

_MAX_TABLE_CLASSES = 12
_MAX_CONFUSIONS = 10


def progress_line(record: Record, width: int | None = None) -> str:
    """Format a "train" record as one line; the least important parts are dropped until it fits `width` columns."""
    parts = _parts(record)
    for dropped in (None, "shares", "rate", "workers", "scale", "speed"):
        if dropped is not None:
            parts.pop(dropped, None)
        line = " | ".join(parts.values()).replace(" | (", " (")  # the workers belong to the speed
        if width is None or len(line) <= width:
            return line
    return line[: max(width or 1, 1) - 1] + "…"


def evaluation_line(record: Record) -> str:
    """Format an "evaluation" record as one line: counts first, since they can be compared exactly."""
    total, split, figures = int(record["num_examples"]), record.get("split", "evaluation"), record.get("figures", {})
    if "main" in figures:
        line = f"{split} {text.FIGURES[figures['main']]} {text.figure(figures[figures['main']], 4)} on {total:,} images"
    else:
        correct = int(record["num_correct"] or 0)
        line = f"{split} accuracy {correct:,} of {total:,} ({correct / max(total, 1):.4f})"
    if "loss" in record:
        line += f" | loss {float(record['loss']):.4g}"
    line += "".join(f" | {name} {text.figure(figures[name], 4)}" for name in figures.get("own", ()))
    if "step" in record:
        line += f" | step {int(record['step']):,}"
    return line


def confusion_table(record: Record, width: int = 80) -> RenderableType | None:
    """Build a table of the confusion matrix of an "evaluation" record; of its largest errors where it does not fit."""
    import numpy as np

    from tl_dist.scores.figures import largest_errors

    if "largest_errors" in record:  # with many classes the record has no matrix
        errors = int(record["num_examples"]) - int(record["num_correct"])
        return _error_table(record["largest_errors"], errors)
    counts: Sequence[Sequence[int]] = record.get("confusion") or ()
    if not counts:
        return None
    names = [printable(str(name)) for name in record.get("class_names") or range(len(counts))]
    cells = [max(len(names[k]), *(len(f"{row[k]:,}") for row in counts)) + 3 for k in range(len(counts))]
    first = max(len("true / predicted"), *(len(name) for name in names)) + 4
    if len(counts) > _MAX_TABLE_CLASSES or first + sum(cells) > width:
        matrix = np.array(counts)
        largest = [(names[i], names[k], num) for i, k, num in largest_errors(matrix, _MAX_CONFUSIONS)]
        return _error_table(largest, int(matrix.sum() - matrix.trace()))
    table = Table("true / predicted")
    for name in names:
        table.add_column(plain(name), justify="right", no_wrap=True)
    for true, row in enumerate(counts):
        figures = [plain(f"{n:,}", "bold" if k == true else "") if n else "·" for k, n in enumerate(row)]
        table.add_row(plain(names[true]), *figures)
    return table


def batch_norm_line(record: Record) -> str:
    """Format a "batch_norm" record: "batch norm (sync): 52 layers, 12 trained, statistics of 12 moved"."""
    layers = record["layers"]
    trained = sum(layer["trainable"] for layer in layers)
    moved = sum(layer["statistics_moved"] for layer in layers)
    line = f"batch norm ({record['policy']}): {len(layers)} layers, {trained} trained, statistics of {moved} moved"
    spread = max(layer["spread"] for layer in layers)
    return line + (f", workers apart by {spread:.1e}" if spread else "")


def extraction_line(record: Record) -> str:
    """Format an "extraction" or "prediction" record as one line: how many images are done."""
    what = f"features of {record['split']} " if "split" in record else "images "
    line = f"{what}{int(record['done']):,}/{int(record['total']):,}"
    if record["examples_per_s"]:
        line += f" | {float(record['examples_per_s']):,.0f} img/s | ETA {_clock_time(float(record['eta_s']))}"
    return line


class Progress:
    """Show records as they come, plain lines `every_s` apart; a context manager, which may own the last line."""

    def __init__(
        self,
        console: Console,
        *,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        listen: Callable[[Record], None] | None = None,
    ) -> None:
        """`listen` gets each record after it was shown."""
        self._console = console
        self._listen = listen
        self._every_s = every_s
        self._clock = clock
        self._last_line_at = float("-inf")
        self._line: str | None = None  # not yet printed for good
        self._live: Live | None = None
        self._output_closed = False

    def __enter__(self) -> Progress:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        live, self._live = self._live, None
        if live is not None:
            self._try(live.stop)
        if self._line is not None:
            self.say(self._line)
            self._line = None

    def show(self, record: Record) -> None:
        """Show one record of `metrics.jsonl`; events that are not for the user show nothing."""
        event = record.get("event")
        if event == "train":
            self._moving(lambda width: progress_line(record, width), record.get("step") == record.get("total_steps"))
        elif event in ("extraction", "prediction"):
            self._moving(lambda width: extraction_line(record), record["done"] == record["total"])
        elif event == "evaluation":
            self.say(evaluation_line(record), style="bold")
        elif event == "batch_norm":
            self.say(batch_norm_line(record))
        elif event == "note":
            self.say(str(record.get("text", "")))
        elif event == "resumed" and record.get("step"):
            self.say(f"resumed from step {record['step']:,}")
        if self._listen is not None:
            self._listen(record)

    def say(self, text: str, *, style: str = "") -> None:
        """Print a line above the live one."""
        # soft_wrap: a log file has no width, and a terminal wraps by itself
        self._try(partial(self._console.print, self._text(text, style), soft_wrap=True))

    def _moving(self, line: Callable[[int | None], str], last: bool) -> None:
        """Replace the live line; without one, print the line if `every_s` has passed or it is the last."""
        now = self._clock()
        if self._live is not None:
            self._line = line(self._console.width)
            self._try(partial(self._live.update, self._text(self._line), refresh=True))
        elif last or now - self._last_line_at >= self._every_s:
            self._last_line_at = now
            self.say(line(None))

    def _try(self, show: Callable[[], None]) -> None:
        """Call `show`; a terminal that was closed, or a pipe without a reader, does not end the run."""
        if not self._output_closed:
            try:
                show()
            except (OSError, SystemExit):  # rich leaves by SystemExit when a pipe breaks
                self._output_closed = True

    @staticmethod
    def _text(text: str, style: str = "") -> RenderableType:
        return plain(text, style, no_wrap=True, overflow="ellipsis")


_RANKS_SHOWN = 4


def _parts(record: Record) -> dict[str, str]:
    """Return the parts of a progress line by name, in order."""
    parts = {"place": f"step {_count(record, 'step')}/{_count(record, 'total_steps')}"}
    if record.get("epochs"):
        epochs = float(record["epochs"])
        now = min(int(float(record.get("epoch", 0))) + 1, max(1, -int(-epochs // 1)))
        parts["place"] = f"epoch {now}/{epochs:g} {parts['place']}"
    parts["loss"] = f"loss {float(record.get('loss', float('nan'))):.3g}"
    if (accuracy := record.get("accuracy", 0)) is not None:
        parts["loss"] += f" acc {float(accuracy):.3f}"
    if "learning_rate" in record:
        rate = f"{float(record['learning_rate']):.1e}"
        parts["rate"] = f"lr {rate.replace('e-0', 'e-').replace('e+0', 'e')}"  # 3.0e-4 rather than 3.0e-04
    workers = int(record.get("workers", 1))
    if "examples_per_s" in record:
        parts["speed"] = f"{float(record['examples_per_s']):,.0f} img/s"
        if workers > 1:
            parts["workers"] = f"({workers} workers)"
    if "data_wait_share" in record:
        shares = [_data_wait(record)]
        if workers > 1 and "reduction_share" in record:
            shares.append(f"reduce {100 * float(record['reduction_share']):.0f} %")
        parts["shares"] = " ".join(shares)
    if record.get("skipped"):
        parts["skipped"] = f"skipped {_count(record, 'skipped')}"
    if float(record.get("loss_scale") or 1.0) != 1.0:
        parts["scale"] = f"scale {float(record['loss_scale']):g}"
    if record.get("eta_s") is not None:
        parts["eta"] = f"ETA {_clock_time(float(record['eta_s']))}"
    return parts


def _data_wait(record: Record) -> str:
    """Format the share of time spent waiting for data: of each rank; of many ranks, the largest and its rank."""
    largest = f"{100 * float(record['data_wait_share']):.0f}"
    ranks = [100 * float(share) for share in record.get("data_wait_shares", ())]
    if "data_wait_rank" in record:
        return f"data {largest} % (rank {_count(record, 'data_wait_rank')})"
    if len(ranks) < 2:
        return f"data {largest} %"
    if len(ranks) > _RANKS_SHOWN:
        return f"data {largest} % (rank {ranks.index(max(ranks))})"
    return f"data {'/'.join(f'{share:.0f}' for share in ranks)} %"


def _count(record: Record, key: str) -> str:
    return f"{int(record[key]):,}" if key in record else "?"


def _clock_time(seconds: float) -> str:
    if not 0 <= seconds < 1e8:
        return "?"
    minutes, s = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{s:02d}"


def _error_table(largest: Iterable[Sequence[Any]], num_errors: int) -> RenderableType | None:
    if not num_errors:
        return None
    table = Table("true class", "predicted as")
    table.add_column(f"times, of {num_errors:,} errors", justify="right")
    for true, predicted, times in largest:
        table.add_row(plain(str(true)), plain(str(predicted)), f"{int(times):,}")
    return table
