"""Which tensors travel together. No framework here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BUCKET_BYTES = 8 * 2**20


def buckets(sizes: Sequence[int], limit: int = BUCKET_BYTES, last: int = 0) -> list[list[int]]:
    """Indices of tensors, from last to first, in groups of about `limit` bytes; the same on every rank.

    The tensors in front that have `last` bytes or less together, if any, are a group of their own.
    """
    head, front = 0, 0
    while last and head < len(sizes) and front + sizes[head] <= last:
        front += sizes[head]
        head += 1
    groups: list[list[int]] = []
    filled = limit
    for k in reversed(range(len(sizes))):
        if filled >= limit or k == head - 1:
            groups.append([])
            filled = 0
        groups[-1].append(k)
        filled += sizes[k]
    return groups


def num_bytes(tensor: Any) -> int:
    """Size of a tensor of known shape."""
    return int(tensor.shape.num_elements()) * int(tensor.dtype.size)
