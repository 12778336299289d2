"""`tl-dist predict`: what the model of a run says of images, computed by workers as in its evaluation."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tl_dist.config import file as config_file
from tl_dist.datasets import quarantine
from tl_dist.datasets.files import unlabelled
from tl_dist.datasets.unlabelled import STDIN, listed, unreadable
from tl_dist.launcher import read_only
from tl_dist.launcher.task import Computation
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import identity_of
from tl_dist.terminal.progress import Progress
from tl_dist.terminal.tables import relative
from tl_dist.tools.predict import Request as Wanted
from tl_dist.tools.predict import exchange
from tl_dist.tools.predict.sorting import Folders
from tl_dist.tools.predict.table import Columns, Row, written

_CLASSES_SHOWN = 20

Show = Callable[[str, str], None]
"""a line of text, and its style"""


@dataclass(frozen=True)
class Request:
    """What a command line asks for."""

    run: Path
    images: Sequence[str]
    """files, folders, patterns; `-`: standard input lists them"""
    wanted: Wanted
    how: Computation
    out: Path | None = None
    sort_into: Path | None = None
    null: bool = False
    max_bad: int | None = None


def shown(request: Request) -> None:
    """`predict` for a person: where the rows go through a pipe, nothing else does."""
    from tl_dist.terminal.console import Console

    console = Console()
    piped = not console.is_terminal and request.out is None and request.sort_into is None
    with Progress(Console(stderr=True) if piped else console) as progress:

        def show(text: str, style: str) -> None:
            if piped:
                console.say(text)
            else:
                progress.say(text, style=style)

        predict(request, progress, show)


def predict(request: Request, progress: Progress, show: Show) -> None:
    """A row for each image, in their order, also of one that cannot be decoded: to a file, else to `show`.

    `progress` says how far it is, and at the end what there is. Refuses (65) only then, with everything done, where
    more cannot be decoded than `max_bad`; default: what training would put up with.
    """
    if not RunDir(request.run).config_file.is_file():
        _refuse_run_behind(request)
    run = RunDir.open(request.run)
    names = list(identity_of(run)["class_names"])
    paths = listed(request.images, sys.stdin.buffer, null=request.null)
    wanted = replace(request.wanted, top=min(request.wanted.top, len(names)))
    tally = _Tally(len(paths), progress)
    folders = None
    with ExitStack() as held:
        sinks: list[Callable[[Sequence[Row]], None]] = []
        if request.out is not None:
            columns = Columns(wanted.top, wanted.coverage is not None, wanted.unknown is not None)
            sinks.append(held.enter_context(written(request.out, columns)))
        if request.sort_into is not None:
            _refuse_within(request.sort_into, request.images)
            folders = Folders(request.sort_into, names)
            sinks.append(folders.take)
        if not sinks:
            sinks.append(lambda rows: _show_rows(rows, show))
        sinks.append(tally.take)
        try:
            facts = _compute(request, run, wanted, _InOrder(paths, names, wanted), sinks)
        except Refusal as refusal:
            if refusal.code != ExitCode.REQUEUE:
                raise
            raise _stopped(tally, request, folders) from None
    _summarize(request, tally, folders, facts, progress)
    most = request.max_bad
    if most is None:
        data = config_file.load(run.config_file).data
        most = quarantine.budget(data.max_bad, {"test": unlabelled(paths, names)})
    if len(tally.faults) > most:
        path, reason = next(iter(tally.faults.items()))
        raise Refusal(
            f"{len(tally.faults):,} of {len(paths):,} files cannot be decoded, more than {most:,}: {path} {reason}.",
            fix="restore them or leave them out, or allow more with --max-bad; all others have been predicted.",
            code=ExitCode.DATA,
        )


def _refuse_run_behind(request: Request) -> None:
    """Refuse a run that is named behind an image."""
    for path in request.images:
        if RunDir(path).config_file.is_file():
            raise Refusal(
                f"{request.run} is not a run, and {path} is one.",
                fix="name the run first: tl-dist predict RUN PATH...",
                code=ExitCode.USAGE,
            )


def _compute(
    request: Request,
    run: RunDir,
    wanted: Wanted,
    rows: _InOrder,
    sinks: Sequence[Callable[[Sequence[Row]], None]],
) -> dict[str, Any]:
    """Give all rows to the sinks, as they come; what the workers said of the model."""

    def hand_on(ready: Sequence[Row]) -> None:
        for sink in sinks if ready else ():
            sink(ready)

    with read_only.directory() as place:
        inbox = exchange.Inbox(place)

        def watch() -> None:
            # While the workers start, and a few at a time: Ctrl-C is heeded in between.
            if not inbox.asked and not rows.look_at_more():
                inbox.ask(rows.readable)
            for piece in inbox.new():
                hand_on(rows.after(piece))

        read_only.work(run, wanted, place, request.how, what="prediction", watch=watch)
        facts = inbox.facts()
    hand_on(rows.rest())
    return facts


class _InOrder:
    """Rows in the order of the files, while what is known of them comes piece by piece."""

    def __init__(self, paths: Sequence[str], class_names: Sequence[str], wanted: Wanted) -> None:
        self._paths, self._class_names = paths, class_names
        self._top, self._rate = wanted.top, wanted.unknown
        self._faults: dict[int, str] = {}
        self._looks = unreadable(paths)
        self._places: list[int] = []
        """of each image that the workers are asked for, among all files"""
        self._next = 0

    def look_at_more(self) -> bool:
        """Look at the headers of some files; False after the last."""
        found = next(self._looks, None)
        self._faults |= found or {}
        if found is None:
            self._places = [k for k in range(len(self._paths)) if k not in self._faults]
        return found is not None

    @property
    def readable(self) -> list[str]:
        """The files that can be decoded, as far as their headers tell."""
        return [self._paths[k] for k in self._places]

    def after(self, piece: exchange.Piece) -> list[Row]:
        """The rows that are complete with this piece."""
        self._faults |= {self._places[k]: reason for k, reason in piece.faults.items()}
        if piece.faults:
            return []
        names = [[self._class_names[k] for k in row] for row in piece.classes.tolist()]
        found: list[Row] = []
        for row, k in enumerate(piece.examples.tolist()):
            place = self._places[k]
            found += self._bad(place)
            p_known = piece.p_known[row] if piece.p_known.size else None
            found.append(
                Row(
                    self._paths[place],
                    names[row][: self._top],
                    piece.probabilities[row][: self._top],
                    in_set=names[row][: piece.in_set[row]] if piece.in_set.size else (),
                    p_known=p_known,
                    unknown=None if p_known is None or self._rate is None else bool(p_known <= self._rate),
                )
            )
            self._next = place + 1
        return found

    def rest(self) -> list[Row]:
        """After the last piece."""
        return list(self._bad(len(self._paths)))

    def _bad(self, end: int) -> Iterator[Row]:
        """The files up to this place, of which none can be decoded."""
        for place in range(self._next, end):
            yield Row(self._paths[place], error=self._faults[place])


class _Tally:
    """How far it is, what the classes are, and what cannot be decoded."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total, self.done = total, 0
        self.classes: Counter[str] = Counter()
        self.faults: dict[str, str] = {}
        self.in_sets, self.unknown = 0, 0
        self._progress = progress
        self._began: tuple[float, int] | None = None

    def take(self, rows: Sequence[Row]) -> None:
        """A few rows more."""
        self.done += len(rows)
        self.classes.update(row.classes[0] for row in rows if not row.error)
        self.faults |= {row.path: row.error for row in rows if row.error}
        self.in_sets += sum(len(row.in_set) for row in rows)
        self.unknown += sum(bool(row.unknown) for row in rows)
        now = time.monotonic()
        if self._began is None:  # what came first took the start of the workers as well
            self._began = now, self.done
        began, first = self._began
        rate = (self.done - first) / max(now - began, 1e-9) if self.done > first else 0.0
        left_s = (self.total - self.done) / rate if rate else 0.0
        record = {"done": self.done, "total": self.total, "examples_per_s": rate, "eta_s": left_s}
        self._progress.show({"event": "prediction", **record})


def _show_rows(rows: Sequence[Row], show: Show) -> None:
    for row in rows:
        said = ", ".join(f"{name} {p:.4f}" for name, p in zip(row.classes, row.probabilities, strict=True))
        said += f" | set: {', '.join(row.in_set)}" if row.in_set else ""
        said += " | unknown" if row.unknown else ""
        show(f"{row.path}: {row.error or said}", "yellow" if row.error else "")


def _summarize(
    request: Request, tally: _Tally, folders: Folders | None, facts: dict[str, Any], progress: Progress
) -> None:
    most = tally.classes.most_common(_CLASSES_SHOWN)
    counts = ", ".join(f"{name} {number:,}" for name, number in most)
    more = f" and {len(tally.classes) - len(most)} more classes" if len(tally.classes) > len(most) else ""
    if facts:
        num = tally.total - len(tally.faults)
        progress.say(f"{num:,} image{'s' * (num != 1)} by step {facts['step']:,}: {counts}{more}")
        for text in _of_calibration(request.wanted, tally, facts, num):
            progress.say(text)
    if facts.get("moving_statistics"):
        progress.say("the run has not ended: batch norm has its moving statistics as they are", style="dim")
    if tally.faults:
        progress.say(f"{len(tally.faults):,} of {tally.total:,} files cannot be decoded", style="yellow")
    if request.out is not None:
        progress.say(f"{relative(request.out)}: {tally.total:,} rows")
    if folders is not None:
        progress.say(f"{relative(request.sort_into or Path())}: {folders.said}")


def _of_calibration(wanted: Wanted, tally: _Tally, facts: dict[str, Any], num: int) -> Iterator[str]:
    if facts["temperature"] is not None:
        yield f"probabilities are calibrated: temperature {facts['temperature']:.3f}, fitted on the validation split"
    if wanted.coverage is not None:
        of = f"of kind {wanted.of_type} " if wanted.of_type is not None else ""
        yield (
            f"sets of {tally.in_sets / max(1, num):.2f} classes on average: of images {of}like those of validation "
            f"{100 * wanted.coverage:g} % of the sets or more hold the true class"
        )
    if wanted.unknown is not None:
        yield (
            f"{tally.unknown:,} unknown: unlike the training images; of images like those of validation at most "
            f"{100 * wanted.unknown:g} % would be called so"
        )


def _stopped(tally: _Tally, request: Request, folders: Folders | None) -> Refusal:
    what = f"the prediction was stopped after {tally.done:,} of {tally.total:,} files"
    what += f"; {request.out} was not written" if request.out is not None else ""
    what += f"; {request.sort_into} has {folders.said}" if folders is not None else ""
    return Refusal(f"{what}.", fix="run the same command again.", code=ExitCode.REQUEUE)


def _refuse_within(root: Path, images: Sequence[str]) -> None:
    """Refuse (64) a folder for copies within a folder of the images: the next time they would be images themselves."""
    for name in images:
        if name != STDIN and root.resolve().is_relative_to(Path(name).resolve()):
            raise Refusal(
                f"--sort-into {root} lies in {name}, whose images are predicted.",
                fix="name a folder outside of it.",
                code=ExitCode.USAGE,
            )
