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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.files.atomic import write_atomically
from tl_dist.files.npz import read_npz, save_npz
from tl_dist.runs import request

FACTS = "facts.json"
_LIST, _PIECE = "images", "piece-{:08d}.npz"
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
    decided: NDArray[np.int32]
    """the class of each example by the rule of `tl-dist threshold`; empty without one. Of examples with labels: 1 for
    each that is given, [examples, labels]; `probabilities` are then all, or all numbers, in order"""
    p_decided: NDArray[np.float32]
    """its probability"""


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
    arrays = piece._asdict() | {"faults": np.frombuffer(json.dumps(piece.faults).encode(), np.uint8)}
    save_npz(directory / _PIECE.format(number), **arrays)


def pieces(directory: Path) -> Iterator[Piece | None]:
    """Yield the pieces in order, and None as long as the next one has not come."""
    for number in count():
        path = directory / _PIECE.format(number)
        while not path.exists():
            yield None
        with path.open("rb") as file:
            arrays = read_npz(file)
        path.unlink()
        faults = {int(k): reason for k, reason in json.loads(arrays.pop("faults").tobytes()).items()}
        yield Piece(**arrays, faults=faults)
