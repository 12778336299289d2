"""Group tensors that are reduced together. Imports no framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BUCKET_BYTES = 8 * 2**20


def buckets(sizes: Sequence[int], limit: int = BUCKET_BYTES, last: int = 0) -> list[list[int]]:
    """Group tensor indices, from last to first, into buckets of about `limit` bytes; the same on every rank.

    The first tensors, as many as fit into `last` bytes, get a bucket of their own, the last one.
    """
    head, head_bytes = 0, 0
    while last and head < len(sizes) and head_bytes + sizes[head] <= last:
        head_bytes += sizes[head]
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
    """Return the size of a tensor of known shape."""
    return int(tensor.shape.num_elements()) * int(tensor.dtype.size)
