"""Write predictions to a file with a row for each image, CSV, JSON Lines or Parquet: all of it, or no file."""

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
    """The prediction for an image: classes, most probable first, and their probabilities; or the error."""

    path: str
    classes: Sequence[str] = ()
    probabilities: Sequence[Any] = ()
    """float32, so that their text has only the digits that a float32 needs"""
    error: str = ""
    in_set: Sequence[str] = ()
    """the classes of its conformal set, if requested"""
    p_known: Any = None
    unknown: bool | None = None
    """whether it is unlike the training images, if requested"""


class Columns(NamedTuple):
    """The columns of a file."""

    top: int
    sets: bool = False
    unknown: bool = False

    def names(self) -> list[str]:
        """Return path, class, probability, class_2, probability_2 and so on, set, p_known and unknown, error."""
        numbers = ["", *(f"_{k}" for k in range(2, self.top + 1))]
        return [
            "path",
            *(name + k for k in numbers for name in ("class", "probability")),
            *["set"] * self.sets,
            *["p_known", "unknown"] * self.unknown,
            "error",
        ]

    def values(self, row: Row) -> list[Any]:
        """Return the values of a row in the order of `names`; None for an empty cell."""
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
    """Yield a function that writes rows to a file in the format of its suffix; the file appears at the end.

    Refuse at once (64) another suffix, and Parquet without its library; (73) a file that cannot be written, and an
    existing file that does not hold predictions.
    """
    writer = _writer_of(path)
    is_ours = partial(_is_ours, suffix=path.suffix.lower())
    refuse_other(path, is_ours, what="a file of predictions", option="--out")
    with ExitStack() as stack:
        with _naming(path):
            fd = stack.enter_context(replacing(path))
            file = stack.enter_context(os.fdopen(fd, "wb", closefd=False))
            write = stack.enter_context(writer(file, columns))

        def write_named(rows: Sequence[Row]) -> None:
            with _naming(path):
                write(rows)

        yield write_named
        with _naming(path):
            stack.close()


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
    # A file name that is not UTF-8 is written as its bytes.
    with io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns.names())
        yield lambda rows: writer.writerows(map(_cell, columns.values(row)) for row in rows)


def _cell(value: Any) -> Any:
    """Return a cell; a set of classes as one text, separated by |, with a backslash before a | in a name."""
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
                    [pyarrow.array(array, field.type) for array, field in zip(arrays, schema, strict=True)],
                    schema=schema,
                )
            )

        yield write


def _text(value: Any) -> Any:
    """Return text that UTF-8 can encode; a file name may have other bytes."""
    if isinstance(value, list):
        return [_text(name) for name in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


_FORMATS = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}


def _writer_of(path: Path) -> Callable[[IO[bytes], Columns], AbstractContextManager[Write]]:
    writer = _FORMATS.get(path.suffix.lower())
    if writer is None:
        what = f"--out {path} has a suffix that names no format."
        raise Refusal(what, fix=f"use one of {', '.join(_FORMATS)}.", code=ExitCode.USAGE)
    if writer is _parquet:
        require(("pyarrow",), extra="parquet", what="a .parquet file")
    return writer


_HEADER = re.compile(r"path,class,probability(,class_(\d+),probability_\2)*(,set)?(,p_known,unknown)?,error")
_KEY = re.compile(r"path|set|p_known|unknown|error|(class|probability)(_\d+)?")


def _is_ours(file: IO[bytes], suffix: str) -> bool:
    """Return whether a file is empty or has exactly the columns of a file of predictions."""
    if not os.fstat(file.fileno()).st_size:
        return True
    if suffix == ".parquet":
        import pyarrow.parquet

        return _HEADER.fullmatch(",".join(pyarrow.parquet.read_schema(file).names)) is not None
    line = file.readline(limits.DATASET_METADATA).decode().rstrip("\r\n")
    if suffix == ".csv":
        return _HEADER.fullmatch(line) is not None
    keys = json.loads(line).keys()
    is_row = keys >= {"path", "class", "probability"} or keys >= {"path", "error"}
    return is_row and all(map(_KEY.fullmatch, keys))
