"""Annotations of examples beside image and label, as columns that can be stored in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class SoftLabels(NamedTuple):
    """Hold labels that mix two classes: `shares` float32 [N] of the example's own, the rest of `others` int32 [N]."""

    others: NDArray[np.int32]
    shares: NDArray[np.float32]


@dataclass(frozen=True)
class Annotations:
    """Hold what is known of each example beside image and label; None or empty if nothing is."""

    weights: NDArray[np.float32] | None = None
    """weight of each example in the loss, float32 [N]"""
    groups: Sequence[str] | None = None
    """group of each example; a group stays in one split"""
    types: Sequence[str] = ()
    """type of each example, such as that of a solar module, if figures by type make sense"""
    soft: SoftLabels | None = None
    """training targets instead of the labels"""

    def of_rows(self, rows: NDArray[np.int64]) -> Annotations:
        """Select the annotations of these examples, in this order."""
        numbers = rows.tolist()
        return Annotations(
            None if self.weights is None else self.weights[rows],
            None if self.groups is None else [self.groups[k] for k in numbers],
            [self.types[k] for k in numbers] if self.types else (),
            None if self.soft is None else SoftLabels(self.soft.others[rows], self.soft.shares[rows]),
        )

    @classmethod
    def joined(cls, parts: Sequence[Annotations], sizes: Sequence[int]) -> Annotations:
        """Concatenate the annotations that all parts, of these sizes, have; a part without weights has weights of 1."""
        weights = [part.weights for part in parts]
        groups = [part.groups for part in parts if part.groups is not None]
        soft = [part.soft for part in parts if part.soft is not None]
        filled = [np.ones(n, np.float32) if w is None else w for w, n in zip(weights, sizes, strict=True)]
        return cls(
            None if all(w is None for w in weights) else np.concatenate(filled),
            [name for part in groups for name in part] if len(groups) == len(parts) else None,
            [name for part in parts for name in part.types] if all(part.types for part in parts) else (),
            SoftLabels(*map(np.concatenate, zip(*soft, strict=True))) if len(soft) == len(parts) else None,
        )

    def columns(self, rows: slice = slice(None)) -> dict[str, NDArray[Any]]:
        """Return the annotations that exist as arrays by name; the inverse of `from_columns`."""
        arrays: dict[str, NDArray[Any]] = {}
        if self.weights is not None:
            arrays["weights"] = self.weights[rows].astype(np.float32)
        if self.groups is not None:
            arrays["groups"] = packed_text(self.groups[rows])
        if self.types:
            arrays["types"] = packed_text(self.types[rows])
        if self.soft is not None:
            arrays["soft_others"] = self.soft.others[rows].astype(np.int32)
            arrays["soft_shares"] = self.soft.shares[rows].astype(np.float32)
        return arrays

    @classmethod
    def from_columns(cls, parts: Sequence[Mapping[str, NDArray[Any]]]) -> Annotations:
        """Read annotations from the columns of consecutive parts; a column that one part lacks is ignored."""
        arrays = {
            name: np.concatenate([part[name] for part in parts])
            for name in parts[0]
            if all(name in part for part in parts)
        }
        soft = SoftLabels(arrays["soft_others"], arrays["soft_shares"]) if "soft_shares" in arrays else None
        groups, types = (unpacked_text(arrays[k]) if k in arrays else None for k in ("groups", "types"))
        return cls(arrays.get("weights"), groups, types or (), soft)

    @property
    def digest(self) -> str:
        """Return a hex digest of all columns; empty if there are none."""
        digest = hashlib.sha256()
        columns = self.columns()
        for name, column in columns.items():
            digest.update(name.encode() + column.tobytes())
        return digest.hexdigest() if columns else ""


NAMES = ("weights", "groups", "types", "soft_others", "soft_shares")
"""names of all columns"""


def packed_text(texts: Iterable[str]) -> NDArray[np.uint8]:
    """Pack texts as zero-terminated bytes: smaller and faster than an array of text, and no pickle."""
    text = "".join(text.replace("\0", "") + "\0" for text in texts)
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)


def unpacked_text(content: NDArray[np.uint8]) -> list[str]:
    """Unpack the texts of `packed_text`."""
    return content.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
