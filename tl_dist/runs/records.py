"""The records of a run, one JSON object a line of `metrics.jsonl`: what is damaged there stops nobody.

Lines are only ever added. An attempt that resumes says from which step, and that makes void what is said above it of
later steps, which are done again: whoever reads by `records` does not see it.
"""

from __future__ import annotations

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
    """The file, to be read; raises FileNotFoundError, and refuses (78) what is no regular file."""
    try:
        return os.fdopen(open_regular(path), "rb", buffering=1 << 18)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Refusal(
            f"{path} cannot be read ({error.strerror}).",
            fix="move it away; the run resumes without its earlier records.",
            code=ExitCode.UNSAFE,
        ) from error


def lines(file: BinaryIO) -> Iterator[bytes]:
    """Each line with its end, but those that are too long to be a record; the last one may have no end yet."""
    begins = True
    while piece := file.readline(limits.METRICS_LINE):
        ends = piece.endswith(b"\n")
        if begins and (ends or len(piece) < limits.METRICS_LINE):
            yield piece
        begins = ends


def record_in(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None where it holds none, or one whose step is no number."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step", 0), int) else None


def records(path: Path) -> Iterator[dict[str, Any]]:
    """All that hold, in their order; none where there is no file."""
    with suppress(FileNotFoundError), open_records(path) as file:
        resumed = [
            (n, step) for n, line in enumerate(lines(file)) if (step := _resumed_from(line)) is not None
        ]
        # With each the least step of it and of all below; the uppermost in the file is the last of the list.
        bounds = list(accumulate(reversed(resumed), lambda below, here: (here[0], min(below[1], here[1]))))
        file.seek(0)
        for n, line in enumerate(lines(file)):
            while bounds and bounds[-1][0] <= n:
                bounds.pop()
            record = record_in(line)
            if record is not None and not (bounds and _is_void(record, bounds[-1][1])):
                yield record


def flattered(run: Path) -> list[str]:
    """What is to be said wherever figures of a run are shown: why they are too good, each reason once."""
    found = records(run / "metrics.jsonl")
    return list(dict.fromkeys(str(one.get("text")) for one in found if one.get("flattered") is True))


def append_to(path: Path) -> TextIO:
    """The file, for more records, each written out at the end of its line. One that a kill has torn is ended first."""
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
    """The records appended since the last look; starts at the file's present end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.read()

    def read(self) -> list[dict[str, Any]]:
        """Whole lines only: the last one may still be in the making."""
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
    """The step of a `resumed` record; None for any other line, without parsing it."""
    record = record_in(line) if b'"resumed"' in line else None
    return record.get("step", 0) if record is not None and record.get("event") == "resumed" else None


def _is_void(record: dict[str, Any], step: int) -> bool:
    """Whether a record says what an attempt that resumed from `step` does again."""
    return bool(record.get("step", 0) > step or record.get("event") == "done")
