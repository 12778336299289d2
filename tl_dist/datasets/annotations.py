"""What a source says of its examples beside image and label, as columns that can be kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class SoftLabels(NamedTuple):
    """Labels that are a mixture of two: `shares` float32 [N] of the example's own, the rest of `others` int32 [N]."""

    others: NDArray[np.int32]
    shares: NDArray[np.float32]


@dataclass(frozen=True)
class Annotations:
    """What is known of each example beside image and label. None or empty: nothing."""

    weights: NDArray[np.float32] | None = None
    """of each example in the loss"""
    groups: Sequence[str] | None = None
    """examples of one group stay in one split"""
    types: Sequence[str] = ()
    """such as that of a solar module, where figures by type make sense"""
    soft: SoftLabels | None = None
    """what to train toward in place of the labels"""

    def of_rows(self, rows: NDArray[np.int64]) -> Annotations:
        """Those of some examples, in this order."""
        numbers = rows.tolist()
        return Annotations(
            None if self.weights is None else self.weights[rows],
            None if self.groups is None else [self.groups[k] for k in numbers],
            [self.types[k] for k in numbers] if self.types else (),
            None if self.soft is None else SoftLabels(self.soft.others[rows], self.soft.shares[rows]),
        )

    @classmethod
    def joined(cls, parts: Sequence[Annotations], sizes: Sequence[int]) -> Annotations:
        """Those of parts of these sizes, one after the other: what all parts have; a part without weights has 1."""
        weights = [part.weights for part in parts]
        groups = [part.groups for part in parts if part.groups is not None]
        soft = [part.soft for part in parts if part.soft is not None]
        filled = [np.ones(n, np.float32) if w is None else w for w, n in zip(weights, sizes, strict=True)]
        return cls(
            None if all(w is None for w in weights) else np.concatenate(filled),
            [name for some in groups for name in some] if len(groups) == len(parts) else None,
            [name for part in parts for name in part.types] if all(part.types for part in parts) else (),
            SoftLabels(*map(np.concatenate, zip(*soft, strict=True))) if len(soft) == len(parts) else None,
        )

    def columns(self, rows: slice = slice(None)) -> dict[str, NDArray[Any]]:
        """Arrays by name, of what there is."""
        found: dict[str, NDArray[Any]] = {}
        if self.weights is not None:
            found["weights"] = self.weights[rows].astype(np.float32)
        if self.groups is not None:
            found["groups"] = packed_text(self.groups[rows])
        if self.types:
            found["types"] = packed_text(self.types[rows])
        if self.soft is not None:
            found["soft_others"] = self.soft.others[rows].astype(np.int32)
            found["soft_shares"] = self.soft.shares[rows].astype(np.float32)
        return found

    @classmethod
    def from_columns(cls, parts: Sequence[Mapping[str, NDArray[Any]]]) -> Annotations:
        """The inverse, from the columns of consecutive rows; what one part lacks is taken to be in none."""
        found = {
            name: np.concatenate([part[name] for part in parts])
            for name in parts[0]
            if all(name in part for part in parts)
        }
        soft = SoftLabels(found["soft_others"], found["soft_shares"]) if "soft_shares" in found else None
        groups, types = (unpacked_text(found[k]) if k in found else None for k in ("groups", "types"))
        return cls(found.get("weights"), groups, types or (), soft)

    @property
    def digest(self) -> str:
        """Of everything; empty where there is nothing."""
        digest = hashlib.sha256()
        columns = self.columns()
        for name, column in columns.items():
            digest.update(name.encode() + column.tobytes())
        return digest.hexdigest() if columns else ""


NAMES = ("weights", "groups", "types", "soft_others", "soft_shares")
"""of all columns"""


def packed_text(texts: Iterable[str]) -> NDArray[np.uint8]:
    """Texts as bytes, each ended by a zero: smaller and faster than an array of text, and no pickle."""
    text = "".join(text.replace("\0", "") + "\0" for text in texts)
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)


def unpacked_text(content: NDArray[np.uint8]) -> list[str]:
    """The inverse."""
    return content.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
