"""Pass predictions from rank 0 to the command that waits for them.

They go through small numbered files in a private directory, each removed once it is read: however many images there
are, few predictions are in memory.
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
from tl_dist.files.npz import read_npz, save_npz

_LIST, _FACTS = "images", "facts.json"
_POLL_S = 0.02


class Piece(NamedTuple):
    """The most probable classes of some images, in falling order, or the faults of some images."""

    examples: NDArray[np.int64]
    classes: NDArray[np.int32]
    """[examples, top], or as many as the largest set has"""
    probabilities: NDArray[np.float32]
    """of `classes`"""
    faults: Mapping[int, str]
    in_set: NDArray[np.int32]
    """how many of the first classes form the conformal set of each example; empty if no sets were requested"""
    p_known: NDArray[np.float32]
    """`conformal.p_values` of each example; empty if not requested"""


def asked(directory: Path) -> list[str]:
    """Wait for `Inbox.ask`, and return the images that it lists."""
    while not (directory / _LIST).exists():
        time.sleep(_POLL_S)
    return [os.fsdecode(name) for name in (directory / _LIST).read_bytes().split(b"\0") if name]


def put_facts(directory: Path, **facts: Any) -> None:
    """Write facts about the model; call it before the first `put`."""
    write_atomically(directory / _FACTS, json.dumps(facts).encode())


def put(directory: Path, number: int, piece: Piece) -> None:
    """Write the piece with this number, counted from 0."""
    arrays = piece._asdict() | {"faults": np.frombuffer(json.dumps(piece.faults).encode(), np.uint8)}
    save_npz(directory / _name(number), **arrays)


class Inbox:
    """The command's end of the directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._next = 0
        self.asked = False

    def ask(self, paths: Sequence[str]) -> None:
        """List the images to predict; pieces refer to them by their index in this list."""
        write_atomically(self._directory / _LIST, b"\0".join(map(os.fsencode, paths)))
        self.asked = True

    def new(self) -> Iterator[Piece]:
        """Yield the pieces that have come since the last call, in order."""
        while (path := self._directory / _name(self._next)).exists():
            with path.open("rb") as file:
                arrays = read_npz(file)
            path.unlink()
            self._next += 1
            faults = {int(k): reason for k, reason in json.loads(arrays.pop("faults").tobytes()).items()}
            yield Piece(**arrays, faults=faults)

    def facts(self) -> dict[str, Any]:
        """Return what `put_facts` wrote."""
        facts: dict[str, Any] = json.loads((self._directory / _FACTS).read_text())
        return facts


def _name(number: int) -> str:
    return f"piece-{number:08d}.npz"
