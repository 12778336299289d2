"""Read what a table says of each image where that is not one class: numbers, or any number of labels."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import DataConfig
from tl_dist.datasets.csv_columns import wrong
from tl_dist.refusal import Refusal

SEPARATORS = ";|,/"


class Targets(NamedTuple):
    """The names of targets or labels, and `values` float32 [images, names]: numbers, or 1 for a label and 0 without."""

    names: tuple[str, ...]
    values: NDArray[np.float32]


def columns_of(data: DataConfig) -> tuple[str, ...]:
    """Return the columns that hold the answers, of a table with numbers or labels; empty for one with classes."""
    return data.target or data.label_columns or (("label",) if data.separator else ())


def read(table: Path, data: DataConfig, cells: Sequence[tuple[int, Sequence[str]]]) -> Targets:
    """Read the cells of `columns_of(data)`, (line, cells) of each image; refuses (65) a cell, naming its line."""
    if data.separator and not data.label_columns:
        return _labels(table, data.separator, [(line, row[0]) for line, row in cells])
    names = columns_of(data)
    values = np.array([[_number(table, line, *pair) for pair in zip(names, row, strict=True)] for line, row in cells])
    values = values.astype(np.float32)
    for name, column in zip(names, values.T, strict=True):
        if data.label_columns and (odd := np.flatnonzero((column != 0) & (column != 1))).size:
            why = f"{name} is {column[odd[0]]:g}: a column of labels holds 0 and 1"
            raise wrong(table, cells[odd[0]][0], why, "correct it, or leave the column out of data.label_columns")
        if (column == column[0]).all():
            raise wrong(table, None, f"{name} is {column[0]:g} in every row", "leave this column out")
    return Targets(names, values)


def _number(table: Path, line: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        why = f"{name} is {'empty' if not text else repr(text)}, which is no number"
        raise wrong(table, line, why, "write a number, or delete the row") from None
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise wrong(table, line, f"{name} is {text}, which is no finite number", "write a number, or delete the row")
    return value


def _labels(table: Path, separator: str, cells: Sequence[tuple[int, str]]) -> Targets:
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
        others = SEPARATORS.replace(separator, "")
        parts = {part.strip() for part in re.split(f"[{re.escape(others)}]", name)}
        if len(parts) > 1 and parts & lines.keys():
            raise _mixed(table, lines[name], name, separator)
    if len(names) < 2:
        raise wrong(table, None, f"all labels are '{names[0]}': it takes two")
    number = {name: k for k, name in enumerate(names)}
    values = np.zeros((len(rows), len(names)), np.float32)
    for k, row in enumerate(rows):
        values[k, [number[label] for label in row]] = 1
    if everywhere := [name for name, column in zip(names, values.T, strict=True) if column.all()]:
        why = f"every image has the label '{everywhere[0]}', which so teaches nothing"
        raise wrong(table, None, why, "leave it out")
    return Targets(names, values)


def _mixed(table: Path, line: int, name: str, separator: str) -> Refusal:
    why = f"label '{name}' holds another separator than '{separator}', and a part of it is a label elsewhere"
    return wrong(table, line, why, f"separate labels by '{separator}', or set data.separator")
