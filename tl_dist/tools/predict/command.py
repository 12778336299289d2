"""`tl-dist predict`: classify images with the model of a run, with workers as in its evaluation."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tl_dist import tasks
from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.datasets import quarantine
from tl_dist.datasets.files import unlabelled
from tl_dist.datasets.unlabelled import STDIN, listed, unreadable
from tl_dist.launcher import read_only
from tl_dist.launcher.task import Computation
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import identity_of
from tl_dist.scores import text
from tl_dist.terminal.console import Console
from tl_dist.terminal.progress import Progress
from tl_dist.terminal.tables import relative
from tl_dist.tools.predict import FACTS, Piece, Request, ask, pieces
from tl_dist.tools.predict.sorting import Folders
from tl_dist.tools.predict.table import Row, columns, columns_of, written

_CLASSES_SHOWN = 20


@dataclass(frozen=True)
class PredictOptions:
    """The arguments of `tl-dist predict`."""

    run: Path
    images: Sequence[str]
    """files, folders, patterns; `-`: standard input lists them"""
    request: Request
    how: Computation
    out: Path | None = None
    sort_into: Path | None = None
    null: bool = False
    max_bad: int | None = None


def predict(options: PredictOptions, console: Console) -> None:
    """Give a row for each image, in order, also for one that cannot be decoded: to files, else to the console.

    Refuse (65), after all images, if more than `max_bad` cannot be decoded; default: as many as training would accept.
    """
    if not RunDir(options.run).config_file.is_file():
        for path in options.images:
            if RunDir(path).config_file.is_file():
                what = f"{options.run} is not a run, and {path} is one."
                fix = "name the run first: tl-dist predict RUN PATH..."
                raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    if (root := options.sort_into) is not None:
        for name in options.images:
            # The next call would predict the copies as well.
            if name != STDIN and root.resolve().is_relative_to(Path(name).resolve()):
                what = f"--sort-into {root} lies in {name}, whose images are predicted."
                raise Refusal(what, fix="name a folder outside of it.", code=ExitCode.USAGE)
    piped = not console.is_terminal and options.out is None and options.sort_into is None
    with Progress(Console(stderr=True) if piped else console) as progress:  # a pipe gets nothing but rows
        _predict(options, progress, console.say if piped else progress.say)


def _predict(options: PredictOptions, progress: Progress, show: Callable[..., None]) -> None:
    run = RunDir.open(options.run)
    names = list(identity_of(run)["class_names"])
    paths = listed(options.images, sys.stdin.buffer, null=options.null)
    request, cfg = replace(options.request, top=min(options.request.top, len(names))), config_file.load(run.config_file)
    folders = None
    if options.sort_into is not None:
        tasks.refuse_others(cfg, "--sort-into copies an image into the folder of its class")
    with ExitStack() as stack:
        place = stack.enter_context(read_only.directory())
        tally, rows = _Tally(len(paths), progress), _InOrder(paths)
        sinks: list[Callable[[Sequence[Row]], None]] = []
        if options.out is not None:
            sinks.append(stack.enter_context(written(options.out, _columns(cfg, request, names))))
        if options.sort_into is not None:
            folders = Folders(options.sort_into, names)
            sinks.append(folders.take)
        if not sinks:
            sinks.append(lambda ready: _show_rows(ready, show))
        sinks.append(tally.take)

        def emit(ready: Sequence[Row]) -> None:
            for sink in sinks if ready else ():
                sink(ready)

        arriving = pieces(place)

        def watch() -> None:
            # Headers are checked while the workers start, a few at a time so that Ctrl-C works in between.
            if (readable := rows.check_more()) is not None:
                ask(place, readable)
            for piece in iter(partial(next, arriving), None):
                emit(rows.after(piece))

        try:
            read_only.work(run, request, place, options.how, what="prediction", watch=watch)
        except Refusal as refusal:
            if refusal.code != ExitCode.REQUEUE:
                raise
            what = f"the prediction was stopped after {tally.done:,} of {tally.total:,} files"
            what += f"; {options.out} was not written" if options.out is not None else ""
            what += f"; {options.sort_into} has {folders.summary}" if folders is not None else ""
            raise Refusal(f"{what}.", fix="run the same command again.", code=ExitCode.REQUEUE) from None
        facts = json.loads((place / FACTS).read_text())
        emit(rows.rest())
    _summarize(options, tally, folders, facts, progress)
    max_bad = options.max_bad
    if max_bad is None:
        max_bad = quarantine.budget(cfg.data.max_bad, {"test": unlabelled(paths, names)})
    if len(tally.faults) > max_bad:
        path, reason = next(iter(tally.faults.items()))
        raise Refusal(
            f"{len(tally.faults):,} of {len(paths):,} files cannot be decoded, more than {max_bad:,}: {path} {reason}.",
            fix="restore them or leave them out, or allow more with --max-bad; all others have been predicted.",
            code=ExitCode.DATA,
        )


def _columns(cfg: Config, request: Request, names: Sequence[str]) -> list[str]:
    """Return the columns of a file of predictions."""
    with_more = request.coverage is not None
    if tasks.one_class_each(cfg):
        return columns(request.top, sets=with_more, unknown=request.unknown is not None)
    return columns_of(names, labels=tasks.gives_labels(cfg), intervals=with_more)


class _InOrder:
    """Orders rows by file, while predictions and faults come in piece by piece."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._faults: dict[int, str] = {}
        self._header_checks = unreadable(paths)
        self._places: list[int] = []
        """the index among all files of each image that the workers predict"""
        self._next = 0
        self._checked = False

    def check_more(self) -> list[str] | None:
        """Check the headers of some more files; after the last, return once the files that look readable."""
        if self._checked:
            return None
        if (faults := next(self._header_checks, None)) is not None:
            self._faults |= faults
            return None
        self._checked = True
        self._places = [k for k in range(len(self._paths)) if k not in self._faults]
        return [self._paths[k] for k in self._places]

    def after(self, piece: Piece) -> list[Row]:
        """Return the rows that this piece completes."""
        self._faults |= {self._places[k]: reason for k, reason in piece.faults.items()}
        rows: list[Row] = []
        for k, fields in piece.rows:
            place = self._places[k]
            rows += [*self._bad(place), Row(self._paths[place], **fields)]
            self._next = place + 1
        return rows

    def rest(self) -> list[Row]:
        """Return the rows after the last piece."""
        return self._bad(len(self._paths))

    def _bad(self, end: int) -> list[Row]:
        """Return the rows of the next files up to `end`, none of which can be decoded."""
        return [Row(self._paths[place], error=self._faults[place]) for place in range(self._next, end)]


class _Tally:
    """Counts the rows, their classes and the files that cannot be decoded, and shows the progress."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total, self.done = total, 0
        self.classes: Counter[str] = Counter()
        self.faults: dict[str, str] = {}
        self.in_sets, self.unknown = 0, 0
        self._progress = progress
        self._began: tuple[float, int] | None = None

    def take(self, rows: Sequence[Row]) -> None:
        """Count some rows."""
        self.done += len(rows)
        self.classes.update(name for row in rows for name in row.classes[:1] or row.labels or ())
        self.faults |= {row.path: row.error for row in rows if row.error}
        self.in_sets += sum(len(row.in_set) for row in rows)
        self.unknown += sum(bool(row.unknown) for row in rows)
        now = time.monotonic()
        if self._began is None:  # the time until the first rows includes the start of the workers
            self._began = now, self.done
        began, first = self._began
        rate = (self.done - first) / max(now - began, 1e-9) if self.done > first else 0.0
        left_s = (self.total - self.done) / rate if rate else 0.0
        record = {"done": self.done, "total": self.total, "examples_per_s": rate, "eta_s": left_s}
        self._progress.show({"event": "prediction", **record})


def _show_rows(rows: Sequence[Row], show: Callable[..., None]) -> None:
    for row in rows:
        line = ", ".join(f"{name} {p:.4f}" for name, p in zip(row.classes, row.probabilities, strict=True))
        if row.values:
            line = _in_words(row)
        line += f" | set: {', '.join(row.in_set)}" if row.in_set else ""
        line += " | unknown" if row.unknown else ""
        show(f"{row.path}: {row.error or line}", style="yellow" if row.error else "")


def _in_words(row: Row) -> str:
    """Return the labels of an image and their probabilities, or its numbers with their intervals."""
    parts = []
    for name, value in row.values.items():
        ends = row.ends.get(name)
        parts.append(f"{name} {value:.4g}" + ("" if ends is None else f" ({ends[0]:.4g} to {ends[1]:.4g})"))
    labels = "" if row.labels is None else f"{', '.join(row.labels) or 'no label'} | "
    return labels + ", ".join(parts)


def _summarize(
    options: PredictOptions, tally: _Tally, folders: Folders | None, facts: dict[str, Any], progress: Progress
) -> None:
    request, num = options.request, tally.total - len(tally.faults)
    most = tally.classes.most_common(_CLASSES_SHOWN)
    counts = ", ".join(f"{name} {number:,}" for name, number in most)
    more = f" and {len(tally.classes) - len(most)} more classes" if len(tally.classes) > len(most) else ""
    progress.say(f"{text.counted(num, 'image')} by step {facts['step']:,}{': ' if counts else ''}{counts}{more}")
    if facts["temperature"] is not None:
        how = f"temperature {facts['temperature']:.3f}, fitted on the validation split"
        progress.say(f"probabilities are calibrated: {how}")
    if facts["decision"] is not None:
        progress.say(f"classes are chosen by the rule of tl-dist threshold: {facts['decision']}")
    if facts["half_widths"] is not None:
        progress.say(
            f"intervals of +- {', '.join(f'{half:.4g}' for half in facts['half_widths'])}: for images like the "
            f"validation images, at least {100 * (request.coverage or 0):g} % of them hold the truth"
        )
    elif request.coverage is not None:
        kind = f"of kind {request.of_type} " if request.of_type is not None else ""
        progress.say(
            f"sets of {tally.in_sets / max(1, num):.2f} classes on average: for images {kind}like the validation "
            f"images, at least {100 * request.coverage:g} % of the sets hold the true class"
        )
    if request.unknown is not None:
        progress.say(
            f"{tally.unknown:,} unknown: unlike the training images; of images like the validation images, at most "
            f"{100 * request.unknown:g} % would be called unknown"
        )
    if facts["moving_statistics"]:
        progress.say("the run has not ended: batch norm uses its moving statistics as they are", style="dim")
    if tally.faults:
        progress.say(f"{len(tally.faults):,} of {tally.total:,} files cannot be decoded", style="yellow")
    if options.out is not None:
        progress.say(f"{relative(options.out)}: {tally.total:,} rows")
    if folders is not None:
        progress.say(f"{relative(options.sort_into or Path())}: {folders.summary}")
