"""Read tables in CSV files: columns by name, errors with the line."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tl_dist.datasets.files import unusable
from tl_dist.files import limits
from tl_dist.files.foreign import open_regular
from tl_dist.refusal import Refusal


@contextmanager
def opened(table: Path) -> Iterator[csv.DictReader[str]]:
    """Open a table as rows by column name; refuses (65) what is no CSV, naming the line."""
    try:
        fd = open_regular(table, links=True)
    except OSError as error:
        raise wrong(table, None, f"it cannot be read: {error.strerror}") from error
    with os.fdopen(fd, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(_lines(file), strict=True)
        try:
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
            yield reader
        except csv.Error as error:
            raise wrong(table, reader.reader.line_num, str(error)) from error


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(limits.TABLE_LINE + 1):
        if len(line) > limits.TABLE_LINE:
            raise csv.Error(f"the line has more than {limits.TABLE_LINE:,} characters")
        yield line


def wrong(table: Path, line: int | None, why: str, fix: str = "correct the file, or data.path") -> Refusal:
    """Make the refusal (65) of a table: what is wrong, and in which line."""
    place = f"{table}:{line}" if line else str(table)
    return unusable(f"{place}: {why}", fix)
