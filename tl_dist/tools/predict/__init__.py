"""Classify images with a trained run: what the command and its workers exchange.

Predictions go through small numbered files in a private directory, each removed once it is read: however many images
there are, few predictions are in memory.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_dist.files.atomic import write_atomically
from tl_dist.runs import request

FACTS = "facts.json"
_LIST, _PIECE = "images", "piece-{:08d}.json"
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """What to predict for each image; `ask` lists the images."""

    top: int
    """the number of classes to give"""
    coverage: float | None = None
    """also give a set of classes that holds the true one at this rate"""
    of_type: str | None = None
    """fit these sets to the validation images of this type alone"""
    unknown: float | None = None
    """also tell whether it is unlike the training images, at this rate of false alarms"""


class Piece(NamedTuple):
    """What is predicted for some images, or the faults of some, by their index in the list of `ask`."""

    rows: Sequence[tuple[int, dict[str, Any]]]
    """in the order of the list, the fields of `table.Row` but for the path"""
    faults: Mapping[int, str]


def ask(directory: Path, paths: Sequence[str]) -> None:
    """List the images to predict; pieces refer to them by their index in this list."""
    write_atomically(directory / _LIST, b"\0".join(map(os.fsencode, paths)))


def asked(directory: Path) -> list[str]:
    """Wait for `ask`, and return the images that it lists."""
    while not (directory / _LIST).exists():
        time.sleep(_POLL_S)
    return [os.fsdecode(name) for name in (directory / _LIST).read_bytes().split(b"\0") if name]


def put(directory: Path, number: int, piece: Piece) -> None:
    """Write the piece with this number, counted from 0. The facts of the model, `FACTS`, must be there before."""
    write_atomically(directory / _PIECE.format(number), json.dumps(piece, default=float).encode())


def pieces(directory: Path) -> Iterator[Piece | None]:
    """Yield the pieces in order, and None as long as the next one has not come."""
    for number in count():
        path = directory / _PIECE.format(number)
        while not path.exists():
            yield None
        rows, faults = json.loads(path.read_bytes(), parse_float=np.float32)
        path.unlink()
        yield Piece(rows, {int(k): reason for k, reason in faults.items()})
