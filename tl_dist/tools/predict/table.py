"""Predictions as a file with a row for each image: CSV, JSON Lines or Parquet. It is there whole, or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from tl_dist.files import limits
from tl_dist.files.atomic import reason, replacing
from tl_dist.files.foreign import refuse_other
from tl_dist.files.packages import require
from tl_dist.refusal import ExitCode, Refusal


class Row(NamedTuple):
    """What is said of an image: classes, most probable first, and their probabilities; or why there are none."""

    path: str
    classes: Sequence[str] = ()
    probabilities: Sequence[Any] = ()
    """float32: their text has as many digits as tell them apart"""
    error: str = ""
    in_set: Sequence[str] = ()
    """the classes of its conformal set, where one was asked for"""
    p_known: Any = None
    unknown: bool | None = None
    """whether it is unlike the training images, where that was asked for"""


class Columns(NamedTuple):
    """Which columns a file has."""

    top: int
    sets: bool = False
    unknown: bool = False

    def names(self) -> list[str]:
        """path, class, probability, class_2, probability_2 and so on, set, p_known and unknown, error."""
        numbers = ["", *(f"_{k}" for k in range(2, self.top + 1))]
        return [
            "path",
            *(name + k for k in numbers for name in ("class", "probability")),
            *["set"] * self.sets,
            *["p_known", "unknown"] * self.unknown,
            "error",
        ]

    def values(self, row: Row) -> list[Any]:
        """Of a row; None where there is nothing."""
        pairs = [value for pair in zip(row.classes, row.probabilities, strict=True) for value in pair]
        return [
            row.path,
            *(pairs or [None] * 2 * self.top),
            *[list(row.in_set) or None] * self.sets,
            *[row.p_known, row.unknown] * self.unknown,
            row.error or None,
        ]


Write = Callable[[Sequence[Row]], None]


@contextmanager
def written(path: Path, columns: Columns) -> Iterator[Write]:
    """What writes rows of these columns to a file, whose suffix says the format, and which appears at the end.

    Refuses at once (64) another suffix, and Parquet without its library; (73) a file that cannot be written, and one
    that is there and is not of such rows.
    """
    opened = _format_of(path)
    is_ours = partial(_is_ours, suffix=path.suffix.lower())
    refuse_other(path, is_ours, what="a file of predictions", option="--out")
    with ExitStack() as held:
        with _naming(path):
            fd = held.enter_context(replacing(path))
            file = held.enter_context(os.fdopen(fd, "wb", closefd=False))
            write = held.enter_context(opened(file, columns))

        def write_named(rows: Sequence[Row]) -> None:
            with _naming(path):
                write(rows)

        yield write_named
        with _naming(path):
            held.close()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{path} cannot be written: {reason(error)}."
        fix = "make room there, or name another file with --out."
        raise Refusal(what, fix=fix, code=ExitCode.CANNOT_CREATE) from error


@contextmanager
def _csv(file: IO[bytes], columns: Columns) -> Iterator[Write]:
    # A name that is not UTF-8 is written as the bytes that it has.
    with io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns.names())
        yield lambda rows: writer.writerows(map(_cell, columns.values(row)) for row in rows)


def _cell(value: Any) -> Any:
    """A set of classes as one text: parted by |, and a | in a name has a backslash before it."""
    return "|".join(name.replace("|", "\\|") for name in value) if isinstance(value, list) else value


@contextmanager
def _json_lines(file: IO[bytes], columns: Columns) -> Iterator[Write]:
    names = columns.names()

    def line(row: Row) -> str:
        record = {k: v for k, v in zip(names, columns.values(row), strict=True) if v is not None}
        return json.dumps(record, default=lambda number: float(str(number))) + "\n"

    yield lambda rows: file.writelines(line(row).encode() for row in rows)


@contextmanager
def _parquet(file: IO[bytes], columns: Columns) -> Iterator[Write]:
    import pyarrow
    import pyarrow.parquet

    number, text = pyarrow.float32(), pyarrow.string()
    kinds = {"probability": number, "p": number, "set": pyarrow.list_(text), "unknown": pyarrow.bool_()}
    fields = [(name, kinds.get(name.partition("_")[0], text)) for name in columns.names()]
    schema = pyarrow.schema(fields)
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:

        def write(rows: Sequence[Row]) -> None:
            values = [[_text(value) for value in columns.values(row)] for row in rows]
            arrays = zip(*values, strict=True)
            writer.write_batch(
                pyarrow.record_batch(
                    [pyarrow.array(a, f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema
                )
            )

        yield write


def _text(value: Any) -> Any:
    """Text that UTF-8 can hold; a name may have other bytes."""
    if isinstance(value, list):
        return [_text(one) for one in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


_FORMATS = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}


def _format_of(path: Path) -> Callable[[IO[bytes], Columns], AbstractContextManager[Write]]:
    found = _FORMATS.get(path.suffix.lower())
    if found is None:
        what = f"--out {path} says no format by its suffix."
        raise Refusal(what, fix=f"use one of {', '.join(_FORMATS)}.", code=ExitCode.USAGE)
    if found is _parquet:
        require(("pyarrow",), extra="parquet", what="a .parquet file")
    return found


_HEADER = re.compile(r"path,class,probability(,class_(\d+),probability_\2)*(,set)?(,p_known,unknown)?,error")
_KEY = re.compile(r"path|set|p_known|unknown|error|(class|probability)(_\d+)?")


def _is_ours(file: IO[bytes], suffix: str) -> bool:
    """Whether its columns are those of a file of predictions, and no other."""
    if not os.fstat(file.fileno()).st_size:
        return True
    if suffix == ".parquet":
        import pyarrow.parquet

        return _HEADER.fullmatch(",".join(pyarrow.parquet.read_schema(file).names)) is not None
    line = file.readline(limits.DATASET_METADATA).decode().rstrip("\r\n")
    if suffix == ".csv":
        return _HEADER.fullmatch(line) is not None
    keys = json.loads(line).keys()
    said = keys >= {"path", "class", "probability"} or keys >= {"path", "error"}
    return said and all(map(_KEY.fullmatch, keys))
