"""CSV tables of image files: path and label, and optionally weight, split and group."""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits, directory_cache
from tl_dist.datasets.annotations import Annotations
from tl_dist.datasets.csv_columns import opened, wrong
from tl_dist.datasets.files import FileStore, size_of
from tl_dist.datasets.split import SPLIT_NAMES, completed
from tl_dist.refusal import ExitCode, Refusal

COLUMNS = ("path", "weight", "split", "group")
_SEPARATORS = ";|,/"


class _Row(NamedTuple):
    line: int
    path: str
    weight: float
    split: str
    group: str
    cells: tuple[str, ...]
    """of column label, or of the columns of targets or labels"""


_Targets = tuple[tuple[str, ...], NDArray[np.float32]]
"""names, and [images, names]: numbers, or 1 for a label and 0 without"""


def open_csv(data: DataConfig) -> Splits:
    """Open the images listed in `data.path`, a CSV file or a directory with one CSV file.

    Columns are `path` (from the file's directory) and `label` (a number or a name; classes are sorted by number, then
    by name), and optionally `weight` (of the example in the loss), `split` (train, validation or test) and `group`
    (examples of one group stay in one split). Others are ignored, but for `_columns`, which take the place
    of `label`. Refuses (65), with file and line, a missing column, an image that is missing or listed twice, and an
    invalid value.
    """
    table, columns = _table(data), _columns(data)
    rows = sorted(_read(table, columns or ("label",)), key=lambda row: row.path)
    if not rows:
        raise wrong(table, None, "it lists no image")
    described: list[tuple[object, ...]] = [(row.weight, row.split, row.group) for row in rows]
    values, labels = None, np.zeros(len(rows), np.int32)
    if columns:
        names, values = _targets(table, data, [(row.line, row.cells) for row in rows])
        described += [row.cells for row in rows]
    else:
        names, labels = _classes(table, rows, data)
    facts = hashlib.sha256(repr(described).encode()).hexdigest()
    weights = np.array([row.weight for row in rows], np.float32)
    ids, groups = tuple(row.path for row in rows), tuple(row.group for row in rows)
    store = FileStore(table.parent, ids, np.array(_sizes(table, rows), np.int64), facts)
    uneven = weights if (weights != 1).any() else None
    annotations = Annotations(uneven, groups if any(groups) else None, targets=values)
    pool = Source(store, labels, ids, names, annotations, table=table)
    splits = np.array([row.split for row in rows])
    if not splits.astype(bool).any():
        return completed({"": pool}, data)
    present = [name for name in ("train", "validation", "test") if (splits == name).any()]
    if "train" not in present:
        raise wrong(table, None, "no row is of split 'train'")
    official = {name: pool.subset(np.flatnonzero(splits == name)) for name in present}
    return completed(official, data, f"{table} has rows of split validation")


def _classes(table: Path, rows: Sequence[_Row], data: DataConfig) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return the names of the classes, and the class of each row."""
    texts = [row.cells[0] for row in rows]
    names = sorted({*texts}, key=lambda text: (not text.lstrip("-").isdecimal(), _number(text), text))
    for row, text in zip(rows, texts, strict=True):
        if not text:
            raise wrong(table, row.line, "the label is empty", "write it, or delete the row")
        if data.grades and text not in data.grades:
            why = f"'{text}' is none of data.grades: {', '.join(data.grades)}"
            raise wrong(table, row.line, why, "correct the label, or add it to data.grades")
    if len(names) < 2:
        raise wrong(table, None, f"all labels are '{names[0]}': it takes two classes")
    number = {name: k for k, name in enumerate(names)}
    return tuple(names), np.array([number[text] for text in texts], np.int32)


def is_csv(path: Path, names: Set[str]) -> bool:
    """Tell by its name if a file is a table."""
    return path.is_file() and path.suffix.lower() in (".csv", ".tsv")


def _table(data: DataConfig) -> Path:
    if data.path is None:
        what = f"dataset {data.name} needs its table."
        fix = "set data.path to a CSV file with the columns path and label."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    path = Path(data.path).expanduser()
    if path.is_dir():
        tables = sorted(path.glob("*.csv"))
        if len(tables) != 1:
            raise wrong(path, None, f"the directory holds {len(tables)} CSV files", "set data.path to one of them")
        path = tables[0]
    size_of(path)
    return path.resolve()


def _read(table: Path, answers: Sequence[str]) -> Iterator[_Row]:
    lines: dict[str, int] = {}
    with opened(table) as reader:
        header = list(reader.fieldnames or ())
        for column in ("path", *answers):
            if column.lower() not in header:
                fix = "correct data.target or data.label_columns"
                if column in ("path", "label"):
                    fix = f"name one of them '{column}' in the file, or correct data.path"
                raise wrong(table, 1, f"there is no column '{column}', only {', '.join(header[:20])}", fix)
        for values in reader:
            row = _row(table, reader.line_num, values, answers)
            if row.path in lines:
                raise wrong(table, row.line, f"{row.path} is in line {lines[row.path]} already")
            lines[row.path] = row.line
            yield row


def _row(table: Path, line: int, values: dict[str, str | None], answers: Sequence[str]) -> _Row:
    text = {name: (values.get(name.lower()) or "").strip() for name in (*COLUMNS, *answers)}
    if values.get(None):  # type: ignore[call-overload]
        raise wrong(table, line, "there are more values than columns")
    if not text["path"]:
        raise wrong(table, line, "the path is empty")
    if text["split"] and text["split"].lower() not in SPLIT_NAMES:
        raise wrong(table, line, f"'{text['split']}' is no split: train, validation or test")
    weight = _number(text["weight"]) if text["weight"] else 1.0
    if not np.finfo(np.float32).tiny <= weight <= np.finfo(np.float32).max:
        raise wrong(table, line, f"'{text['weight']}' is no weight: a number above 0, within float32")
    split = SPLIT_NAMES[text["split"].lower()] if text["split"] else ("train" if "split" in values else "")
    return _Row(line, text["path"], weight, split, text["group"], tuple(text[name] for name in answers))


def _sizes(table: Path, rows: Sequence[_Row]) -> list[int]:
    """Return the size of each image in bytes; refuses the first one that is missing or empty."""
    places = [os.path.split(table.parent / row.path) for row in rows]
    by_folder: dict[str, list[str]] = defaultdict(list)
    for folder, name in places:
        by_folder[folder].append(name)
    known = directory_cache.sizes_in(by_folder)
    sizes = [known[folder].get(name, 0) for folder, name in places]
    for row, size in zip(rows, sizes, strict=True):
        if not size:
            raise wrong(table, row.line, _why_not(table.parent / row.path, row))
    return sizes


def _why_not(path: Path, row: _Row) -> str:
    """Say what is wrong with a file of no bytes."""
    try:
        path.stat()
    except OSError as error:
        return f"{row.path} cannot be read: {error.strerror}"
    except ValueError as error:  # a NUL
        return f"this path is none: {error}"
    return f"{row.path} is empty"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _columns(data: DataConfig) -> tuple[str, ...]:
    """Return the columns that hold the answers, of a table with numbers or labels; empty for one with classes."""
    return data.target or data.label_columns or (("label",) if data.separator else ())


def _targets(table: Path, data: DataConfig, cells: Sequence[tuple[int, Sequence[str]]]) -> _Targets:
    """Read the cells of `_columns(data)`, (line, cells) of each image; refuses (65) a cell, naming its line."""
    if data.separator and not data.label_columns:
        return _labels(table, data.separator, [(line, row[0]) for line, row in cells])
    names = _columns(data)
    values = np.array([[_finite(table, line, *pair) for pair in zip(names, row, strict=True)] for line, row in cells])
    values = values.astype(np.float32)
    for name, column in zip(names, values.T, strict=True):
        if data.label_columns and (odd := np.flatnonzero((column != 0) & (column != 1))).size:
            why = f"{name} is {column[odd[0]]:g}: a column of labels holds 0 and 1"
            raise wrong(table, cells[odd[0]][0], why, "correct it, or leave the column out of data.label_columns")
        if (column == column[0]).all():
            raise wrong(table, None, f"{name} is {column[0]:g} in every row", "leave this column out")
    return names, values


def _finite(table: Path, line: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        why = f"{name} is {'empty' if not text else repr(text)}, which is no number"
        raise wrong(table, line, why, "write a number, or delete the row") from None
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise wrong(table, line, f"{name} is {text}, which is no finite number", "write a number, or delete the row")
    return value


def _labels(table: Path, separator: str, cells: Sequence[tuple[int, str]]) -> _Targets:
    """Read labels between separators. Refuses an empty one, one label in two spellings, and other separators."""
    lines: dict[str, int] = {}
    rows = [[label.strip() for label in cell.split(separator)] for _, cell in cells]
    for (line, cell), row in zip(cells, rows, strict=True):
        if not all(row):
            fix = "write each label once; images without any need columns of 0 and 1: data.label_columns"
            why = f"label '{cell}' has an empty label" if cell else "the label is empty"
            raise wrong(table, line, why, fix)
        if len({*row}) < len(row):
            raise wrong(table, line, f"label '{cell}' has a label twice", "write it once")
        for label in row:
            lines.setdefault(label, line)
    names = tuple(sorted(lines))
    spellings: dict[str, str] = {}
    for name in names:
        first = spellings.setdefault(" ".join(name.replace("_", " ").casefold().split()), name)
        if first != name:
            why = f"label '{name}' is '{first}' in line {lines[first]}"
            raise wrong(table, lines[name], why, "write it in one way")
        others = _SEPARATORS.replace(separator, "")
        parts = {part.strip() for part in re.split(f"[{re.escape(others)}]", name)}
        if len(parts) > 1 and parts & lines.keys():
            why = f"label '{name}' holds another separator than '{separator}', and a part of it is a label elsewhere"
            raise wrong(table, lines[name], why, f"separate labels by '{separator}', or set data.separator")
    if len(names) < 2:
        raise wrong(table, None, f"all labels are '{names[0]}': it takes two")
    number = {name: k for k, name in enumerate(names)}
    values = np.zeros((len(rows), len(names)), np.float32)
    for k, row in enumerate(rows):
        values[k, [number[label] for label in row]] = 1
    if everywhere := [name for name, column in zip(names, values.T, strict=True) if column.all()]:
        why = f"every image has the label '{everywhere[0]}', which so teaches nothing"
        raise wrong(table, None, why, "leave it out")
    return names, values
