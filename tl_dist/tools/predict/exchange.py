"""Predictions on their way from rank 0 to the command that waits for them.

They are small files in a private directory, in order and each removed once it is read: however many images there are,
few are in memory.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.files.atomic import write_atomically
from tl_dist.files.npz import read_npz
from tl_dist.scores import predictions

_LIST, _FACTS = "images", "facts.json"
_POLL_S = 0.02


class Piece(NamedTuple):
    """Of some images, by their numbers: the most probable classes, first the most; or why there are none."""

    examples: NDArray[np.int64]
    classes: NDArray[np.int32]
    """[examples, top], or as many as the largest set has"""
    probabilities: NDArray[np.float32]
    """of these"""
    faults: Mapping[int, str]
    in_set: NDArray[np.int32]
    """how many of the classes are the set of each example; empty where none was asked for"""
    p_known: NDArray[np.float32]
    """`conformal.p_values` of each example; likewise"""


def asked(directory: Path) -> list[str]:
    """The images that `Inbox.ask` lists; waits for it."""
    while not (directory / _LIST).exists():
        time.sleep(_POLL_S)
    return [os.fsdecode(name) for name in (directory / _LIST).read_bytes().split(b"\0") if name]


def put_facts(directory: Path, **facts: Any) -> None:
    """Leave what is known of the model; before the first piece."""
    write_atomically(directory / _FACTS, json.dumps(facts).encode())


def put(directory: Path, number: int, piece: Piece) -> None:
    """Leave the piece with this number, from 0."""
    arrays = piece._asdict() | {"faults": np.frombuffer(json.dumps(piece.faults).encode(), np.uint8)}
    predictions.save(directory / _name(number), **arrays)


class Inbox:
    """The other side of a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._next = 0
        self.asked = False

    def ask(self, paths: Sequence[str]) -> None:
        """Say what is to be predicted; the numbers in the pieces are the places in this list."""
        write_atomically(self._directory / _LIST, b"\0".join(map(os.fsencode, paths)))
        self.asked = True

    def new(self) -> Iterator[Piece]:
        """The pieces that have come since the last call, in order."""
        while (path := self._directory / _name(self._next)).exists():
            with path.open("rb") as file:
                arrays = read_npz(file)
            path.unlink()
            self._next += 1
            faults = {int(k): reason for k, reason in json.loads(arrays.pop("faults").tobytes()).items()}
            yield Piece(**arrays, faults=faults)

    def facts(self) -> dict[str, Any]:
        """What `put_facts` has left."""
        found: dict[str, Any] = json.loads((self._directory / _FACTS).read_text())
        return found


def _name(number: int) -> str:
    return f"piece-{number:08d}.npz"
