"""Read and append a run's records, one JSON object a line of `metrics.jsonl`; damaged lines are skipped.

Lines are only ever appended. An attempt that resumes records its step, which makes void the earlier records of later
steps, since these are trained again: `records` does not yield them.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from tl_dist.files import limits
from tl_dist.files.atomic import open_to_append
from tl_dist.files.foreign import open_regular
from tl_dist.refusal import ExitCode, Refusal


def open_records(path: Path) -> BinaryIO:
    """Open the file for reading; raise FileNotFoundError, and refuse (78) what is no regular file."""
    try:
        return os.fdopen(open_regular(path), "rb", buffering=1 << 18)
    except FileNotFoundError:
        raise
    except OSError as error:
        fix = "move it away; the run resumes without its earlier records."
        raise Refusal(f"{path} cannot be read ({error.strerror}).", fix=fix, code=ExitCode.UNSAFE) from error


def lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield each line with its newline, except lines too long for a record; the last may have no newline yet."""
    begins = True
    while piece := file.readline(limits.METRICS_LINE):
        ends = piece.endswith(b"\n")
        if begins and (ends or len(piece) < limits.METRICS_LINE):
            yield piece
        begins = ends


def record_in(line: bytes) -> dict[str, Any] | None:
    """Parse the record on a line; None if there is none, or its step is no integer."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step", 0), int) else None


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield all records that are not void, in order; none if there is no file."""
    with suppress(FileNotFoundError), open_records(path) as file:
        resumed = [(n, step) for n, line in enumerate(lines(file)) if (step := _resumed_from(line)) is not None]
        # Each with the least step of its own and of all below it in the file; the topmost is the last of the list.
        bounds = list(accumulate(reversed(resumed), lambda below, here: (here[0], min(below[1], here[1]))))
        file.seek(0)
        for n, line in enumerate(lines(file)):
            while bounds and bounds[-1][0] <= n:
                bounds.pop()
            record = record_in(line)
            if record is None:
                continue
            # An attempt that resumed from the bound's step repeats what a later record reports.
            if not bounds or (record.get("step", 0) <= bounds[-1][1] and record.get("event") != "done"):
                yield record


def flattered(run: Path) -> list[str]:
    """Return why a run's figures are too good, each reason once, to be shown wherever the figures are."""
    reasons = (r.get("text") for r in records(run / "metrics.jsonl") if r.get("flattered") is True)
    return list(dict.fromkeys(map(str, reasons)))


def append_to(path: Path) -> TextIO:
    """Open the file to append line-buffered records; end a line that a kill has torn first."""
    torn = False
    with suppress(FileNotFoundError), open_records(path) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read() != b"\n"
    appended = os.fdopen(open_to_append(path), "a", encoding="utf-8", buffering=1)
    if torn:
        appended.write("\n")
    return appended


class NewRecords:
    """A reader of the records that are appended after its construction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.read()

    def read(self) -> list[dict[str, Any]]:
        """Return the new records of complete lines: the last line may still be being written."""
        fresh = []
        with suppress(FileNotFoundError), open_records(self._path) as file:
            file.seek(self._offset)
            unfinished = 0
            for line in lines(file):
                if not line.endswith(b"\n"):
                    unfinished = len(line)
                elif (record := record_in(line)) is not None:
                    fresh.append(record)
            self._offset = file.tell() - unfinished
        return fresh


def _resumed_from(line: bytes) -> int | None:
    """Return the step of a `resumed` record; None for any other line, mostly without parsing it."""
    record = record_in(line) if b'"resumed"' in line else None
    return record.get("step", 0) if record is not None and record.get("event") == "resumed" else None
