"""ELPV: 2,624 electroluminescence images of solar cells, each with a defect probability from experts.

Deitsch et al. 2019 (arXiv 1807.02894), https://github.com/zae-bayern/elpv-dataset; data CC BY-NC-SA 4.0.
"""

import hashlib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits
from tl_dist.datasets.annotations import Annotations, SoftLabels
from tl_dist.datasets.files import FileStore, directory_of, size_of, text_in, unusable
from tl_dist.datasets.split import divide
from tl_dist.files.packages import fetch
from tl_dist.refusal import ExitCode, Refusal

PACKAGE = "elpv-dataset==1.0.0.post1"
NUM_CELLS = 2624
NUM_DEFECTIVE = 821

_TYPES = ("mono", "poly")


class _Cell(NamedTuple):
    path: str
    probability: float  # that the cell is defective: 0, 1/3, 2/3 or 1
    type: str  # of the module, mono- or polycrystalline


def open_elpv(data: DataConfig) -> Splits:
    """Open cells as functional or defective (probability above 1/2), stratified by type and class as in the paper.

    With `data.grades` the classes are the experts' four probabilities instead, and with the target "probability" each
    cell has that number.

    With the default test_fraction there are 1,968 examples for training and 656 for test. The files come from the
    package index, or from `data.path`: a directory with labels.csv and the images that it names.
    """
    if data.path is None:
        root = fetch(PACKAGE, "elpv_dataset/data").resolve()
    else:
        root = directory_of(data, f"labels.csv and images of {PACKAGE}; without it they are fetched")
    cells = _read_labels(root / "labels.csv")
    labels = np.array([cell.probability > 0.5 for cell in cells], np.int32)
    if data.path is None and (len(cells), int(labels.sum())) != (NUM_CELLS, NUM_DEFECTIVE):
        raise _wrong(root / "labels.csv", f"{len(cells)} cells, {labels.sum()} defective: not those of {PACKAGE}")
    ids = [cell.path for cell in cells]
    sizes = np.array([size_of(root / path) for path in ids], np.int64)
    facts = hashlib.sha256(repr([tuple(cell) for cell in cells]).encode()).hexdigest()
    types, soft = [cell.type for cell in cells], _soft_labels(cells) if data.soft_labels else None
    store = FileStore(root, ids, sizes, facts)
    names: tuple[str, ...] = ("functional", "defective")
    if data.grades:
        probabilities, grades = np.unique([cell.probability for cell in cells], return_inverse=True)
        labels, names = grades.astype(np.int32), tuple(f"{value:.2g}" for value in probabilities)
    targets = None
    if data.target:
        if data.target != ("probability",):
            what = f"elpv has no target '{data.target[0]}'."
            raise Refusal(what, fix="write 'target: probability'.", code=ExitCode.USAGE)
        labels, names = np.zeros(len(cells), np.int32), data.target
        targets = np.array([[cell.probability] for cell in cells], np.float32)
    return divide(Source(store, labels, ids, names, Annotations(types=types, soft=soft, targets=targets)), data)


def is_elpv(path: Path, names: Set[str]) -> bool:
    """Tell by the names in a directory if it holds ELPV."""
    return {"labels.csv", "images"} <= names


def _soft_labels(cells: Sequence[_Cell]) -> SoftLabels:
    """Return the probability of the likelier class, which is the label; the rest is the other's."""
    defective = np.array([cell.probability for cell in cells], np.float32)
    return SoftLabels((defective <= 0.5).astype(np.int32), np.maximum(defective, 1 - defective))


def _read_labels(file: Path) -> list[_Cell]:
    """Read the rows (path, probability, type, separated by spaces), sorted by path since their order means nothing."""
    size_of(file)
    cells: dict[str, _Cell] = {}
    for number, line in enumerate(text_in(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            path, probability, kind = line.split()
            cell = _Cell(path, float(probability), kind)
        except ValueError:
            raise _wrong(file, f"line {number} is not 'path probability type' but {line[:80]!r}") from None
        if not 0 <= cell.probability <= 1 or kind not in _TYPES:
            raise _wrong(file, f"line {number}: {probability} is no probability, or {kind} neither mono nor poly")
        if path in cells:
            raise _wrong(file, f"line {number} names {path} a second time")
        cells[path] = cell
    if not cells:
        raise _wrong(file, "it names no image")
    return [cells[path] for path in sorted(cells)]


def _wrong(file: Path, why: str) -> Refusal:
    return unusable(f"{file}: {why}", f"restore the file from {PACKAGE}, or correct data.path")
