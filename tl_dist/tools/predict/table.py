"""Write predictions to a file with a row for each image, CSV, JSON Lines or Parquet: all of it, or no file."""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

from tl_dist.files import limits
from tl_dist.files.atomic import OUTPUT, reason, replacing
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
    values: Mapping[str, Any] = MappingProxyType({})
    """instead of classes: the number, or the probability, of each target or label"""
    labels: Sequence[str] | None = None
    """the labels that it gets; None where it has numbers"""
    ends: Mapping[str, tuple[Any, Any]] = MappingProxyType({})
    """both ends of the interval of each number, if requested"""


_ENDS = ("low", "high")


def columns_of(names: Sequence[str], *, labels: bool, intervals: bool) -> list[str]:
    """Return path, labels, a column for each target or label, with intervals also NAME_low and NAME_high, error.

    Refuses (64) a name that is another column's.
    """
    ends = [f"{name}_{end}" for name in names for end in _ENDS] if intervals else []
    columns = ["path", *["labels"] * labels, *names, *ends, "error"]
    if twice := [name for name in names if columns.count(name) > 1]:
        what = f"--out would have two columns '{twice[0]}': one is a target or label of that name."
        raise Refusal(what, fix="leave out --out, or train with another name for it.", code=ExitCode.USAGE)
    return columns


def columns(top: int, *, sets: bool = False, unknown: bool = False) -> list[str]:
    """Return path, class, probability, class_2, probability_2 and so on, set, p_known and unknown, error."""
    numbers = ["", *(f"_{k}" for k in range(2, top + 1))]
    classes = [name + k for k in numbers for name in ("class", "probability")]
    return ["path", *classes, *["set"] * sets, *["p_known", "unknown"] * unknown, "error"]


def _record(row: Row) -> dict[str, Any]:
    """Return the values of a row by column, without empty cells."""
    record: dict[str, Any] = {"path": row.path}
    for k, (name, probability) in enumerate(zip(row.classes, row.probabilities, strict=True), 1):
        number = f"_{k}" if k > 1 else ""
        record |= {f"class{number}": name, f"probability{number}": probability}
    if row.values:
        labels = {} if row.labels is None else {"labels": row.labels}
        ends = {
            f"{name}_{end}": value for name, pair in row.ends.items() for end, value in zip(_ENDS, pair, strict=True)
        }
        return {**record, **labels, **row.values, **ends}
    others = {"set": [*row.in_set] or None, "p_known": row.p_known, "unknown": row.unknown}
    others["error"] = row.error or None
    return record | {name: value for name, value in others.items() if value is not None}


Write = Callable[[Sequence[Row]], None]
_WriteRecords = Callable[[Sequence[Mapping[str, Any]]], None]


@contextmanager
def written(path: Path, columns: Sequence[str]) -> Iterator[Write]:
    """Yield a function that writes rows to a file in the format of its suffix; the file appears at the end.

    Refuse at once (64) another suffix, and Parquet without its library; (73) a file that cannot be written, and an
    existing file that does not hold predictions.
    """
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        what = f"--out {path} has a suffix that names no format."
        raise Refusal(what, fix=f"use one of {', '.join(_FORMATS)}.", code=ExitCode.USAGE)
    if suffix == ".parquet":
        require(("pyarrow",), extra="parquet", what="a .parquet file")
    ours = partial(_is_ours, suffix=suffix, columns=columns)
    refuse_other(path, ours, what="a file of predictions", option="--out")
    with ExitStack() as stack:
        with _naming(path):
            fd = stack.enter_context(replacing(path, mode=OUTPUT))
            file = stack.enter_context(os.fdopen(fd, "wb", closefd=False))
            write = stack.enter_context(_FORMATS[suffix](file, columns))

        def write_named(rows: Sequence[Row]) -> None:
            with _naming(path):
                write([_record(row) for row in rows])

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
def _csv(file: IO[bytes], columns: Sequence[str]) -> Iterator[_WriteRecords]:
    # A file name that is not UTF-8 is written as its bytes.
    with io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text:
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        yield lambda records: writer.writerows({k: _cell(v) for k, v in r.items()} for r in records)


def _cell(value: Any) -> Any:
    """Return a cell; a set of classes as one text, separated by |, with a backslash before a | in a name."""
    return "|".join(name.replace("|", "\\|") for name in value) if isinstance(value, list) else value


@contextmanager
def _json_lines(file: IO[bytes], columns: Sequence[str]) -> Iterator[_WriteRecords]:
    def line(record: Mapping[str, Any]) -> bytes:
        return (json.dumps(record, default=lambda number: float(str(number))) + "\n").encode()

    yield lambda records: file.writelines(map(line, records))


@contextmanager
def _parquet(file: IO[bytes], columns: Sequence[str]) -> Iterator[_WriteRecords]:
    import pyarrow
    import pyarrow.parquet

    number, text = pyarrow.float32(), pyarrow.string()
    kinds = {"probability": number, "p": number, "set": pyarrow.list_(text), "unknown": pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds.get(name.partition("_")[0], text)) for name in columns])
    if "class" not in columns:
        kinds = {"path": text, "error": text, "labels": pyarrow.list_(text)}
        schema = pyarrow.schema([(name, kinds.get(name, number)) for name in columns])
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:

        def write(records: Sequence[Mapping[str, Any]]) -> None:
            rows = [{name: _text(value) for name, value in record.items()} for record in records]
            writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=schema))

        yield write


def _text(value: Any) -> Any:
    """Return text that UTF-8 can encode; a file name may have other bytes."""
    if isinstance(value, list):
        return [_text(name) for name in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


_FORMATS = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}
_HEADER = re.compile(r"path,class,probability(,class_(\d+),probability_\2)*(,set)?(,p_known,unknown)?,error")
_KEY = re.compile(r"path|set|p_known|unknown|error|(class|probability)(_\d+)?")


def _is_ours(file: IO[bytes], suffix: str, columns: Sequence[str]) -> bool:
    """Return whether a file is empty or has exactly these columns, or those of a file of predictions."""
    if not os.fstat(file.fileno()).st_size:
        return True
    if suffix == ".parquet":
        import pyarrow.parquet

        names = pyarrow.parquet.read_schema(file).names
        return names == columns or _HEADER.fullmatch(",".join(names)) is not None
    line = file.readline(limits.DATASET_METADATA).decode().rstrip("\r\n")
    if suffix == ".csv" and next(csv.reader([line]), []) == columns:
        return True
    if suffix == ".csv":
        return _HEADER.fullmatch(line) is not None
    keys = json.loads(line).keys()
    if "class" not in columns:
        return {"path"} < keys <= {*columns}
    is_row = keys >= {"path", "class", "probability"} or keys >= {"path", "error"}
    return is_row and all(map(_KEY.fullmatch, keys))
