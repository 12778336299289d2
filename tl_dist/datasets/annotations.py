"""What a source says of its examples beside image and label, as columns that can be kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import SoftLabels, Source, types_of


@dataclass(frozen=True)
class Annotations:
    """Of each example: the weight in the loss, the group, the type, the soft label. None or empty: there are none."""

    weights: NDArray[np.float32] | None = None
    groups: Sequence[str] | None = None
    types: Sequence[str] = ()
    soft: SoftLabels | None = None

    @classmethod
    def of(cls, source: Source) -> Annotations:
        """Those of a source."""
        return cls(
            getattr(source, "weights", None),
            getattr(source, "groups", None),
            types_of(source),
            getattr(source, "soft", None),
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
