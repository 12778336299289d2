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
    targets: NDArray[np.float32] | None = None
    """what the model is to answer, where that is not one class: float32 [N, targets], or 0 and 1 [N, labels]"""

    def of_rows(self, rows: NDArray[np.int64]) -> Annotations:
        """Select the annotations of these examples, in this order."""
        numbers = rows.tolist()
        return Annotations(
            None if self.weights is None else self.weights[rows],
            None if self.groups is None else [self.groups[k] for k in numbers],
            [self.types[k] for k in numbers] if self.types else (),
            None if self.soft is None else SoftLabels(self.soft.others[rows], self.soft.shares[rows]),
            None if self.targets is None else self.targets[rows],
        )

    @classmethod
    def joined(cls, parts: Sequence[Annotations], sizes: Sequence[int]) -> Annotations:
        """Concatenate the annotations that all parts, of these sizes, have; a part without weights has weights of 1."""
        weights = [part.weights for part in parts]
        groups = [part.groups for part in parts if part.groups is not None]
        soft = [part.soft for part in parts if part.soft is not None]
        targets = [part.targets for part in parts if part.targets is not None]
        filled = [np.ones(n, np.float32) if w is None else w for w, n in zip(weights, sizes, strict=True)]
        return cls(
            None if all(w is None for w in weights) else np.concatenate(filled),
            [name for part in groups for name in part] if len(groups) == len(parts) else None,
            [name for part in parts for name in part.types] if all(part.types for part in parts) else (),
            SoftLabels(*map(np.concatenate, zip(*soft, strict=True))) if len(soft) == len(parts) else None,
            np.concatenate(targets) if len(targets) == len(parts) else None,
        )

    def as_json(self) -> dict[str, list[Any]]:
        """Return the annotations that exist as lists by name; the inverse of `from_json`."""
        columns = {
            "weights": self.weights,
            "groups": self.groups,
            "types": self.types or None,
            "soft": self.soft,
            "targets": self.targets,
        }
        return {name: np.asarray(values).tolist() for name, values in columns.items() if values is not None}

    @classmethod
    def from_json(cls, lists: Mapping[str, Any], num: int, num_classes: int) -> Annotations:
        """Read annotations of `num` examples; raises ValueError or TypeError for what cannot be theirs."""

        def numbers(values: Any, kind: Any, below: float) -> NDArray[Any]:
            column = np.array(values, np.float64)
            if column.shape != (num,) or not ((column >= 0) & (column < below)).all():
                raise ValueError(f"they are not {num} numbers from 0 to below {below}")
            return column.astype(kind)

        most, soft = float(np.finfo(np.float32).max), None
        if "soft" in lists:
            others, shares = lists["soft"]
            soft = SoftLabels(numbers(others, np.int32, num_classes), numbers(shares, np.float32, most))
        targets = None
        if "targets" in lists:
            targets = np.array(lists["targets"], np.float32)
            if targets.shape != (num, num_classes) or not np.isfinite(targets).all():
                raise ValueError(f"its targets are not {num} x {num_classes} finite numbers")
        return cls(
            numbers(lists["weights"], np.float32, most) if "weights" in lists else None,
            texts(lists["groups"], num) if "groups" in lists else None,
            texts(lists["types"], num) if "types" in lists else (),
            soft,
            targets,
        )

    @property
    def digest(self) -> str:
        """Return a hex digest of all annotations; empty if there are none."""
        others, shares = self.soft or (None, None)
        columns = {
            "weights": self.weights,
            "groups": None if self.groups is None else _packed(self.groups),
            "types": _packed(self.types) if self.types else None,
            "soft_others": others,
            "soft_shares": shares,
            "targets": self.targets,
        }
        existing = [name.encode() + values.tobytes() for name, values in columns.items() if values is not None]
        return hashlib.sha256(b"".join(existing)).hexdigest() if existing else ""


def texts(values: Any, num: int | None = None) -> list[str]:
    """Return a list of texts, `num` if that is given; raises ValueError for anything else."""
    if not isinstance(values, list) or num not in (None, len(values)) or not {*map(type, values)} <= {str}:
        raise ValueError(f"{str(values)[:40]} is no list of {num or ''} texts")
    return values


def _packed(texts: Iterable[str]) -> NDArray[np.uint8]:
    """Pack texts as zero-terminated bytes."""
    text = "".join(text.replace("\0", "") + "\0" for text in texts)
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
