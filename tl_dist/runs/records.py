"""The records of a run, one JSON object a line, read back from `metrics.jsonl`: what is damaged there stops nobody."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from tl_dist.files import limits
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
    """All that can be read, in their order; none where there is no file."""
    with suppress(FileNotFoundError), open_records(path) as file:
        for line in lines(file):
            if (record := record_in(line)) is not None:
                yield record


class NewRecords:
    """The records appended since the last look; starts at the file's present end.

    A restarted rank 0 replaces the file by one without the steps that are done again. Then the lines that
    were there before are told from new ones by counting equal lines.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._offset = 0
        self._seen: Counter[bytes] = Counter()
        self.read()

    def read(self) -> list[dict[str, Any]]:
        """Whole lines only: the last one may still be in the making."""
        try:
            file = open_records(self._path)
        except FileNotFoundError:
            return []
        with file:
            inode = os.fstat(file.fileno()).st_ino
            before: Counter[bytes] = Counter()
            if inode != self._inode:
                before, self._seen = self._seen, Counter()
                self._inode, self._offset = inode, 0
            file.seek(self._offset)
            fresh = []
            unfinished = 0
            for line in lines(file):
                if not line.endswith(b"\n"):
                    unfinished = len(line)
                    break
                digest = hashlib.blake2b(line, digest_size=8).digest()
                self._seen[digest] += 1
                if before[digest] > 0:
                    before[digest] -= 1
                elif (record := record_in(line)) is not None:
                    fresh.append(record)
            self._offset = file.tell() - unfinished
        return fresh
