"""Equal and nearly equal images among many, without comparing each with each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def equal(digests: Sequence[str]) -> list[list[int]]:
    """Indices of images with one digest, in groups of two or more."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, digest in enumerate(digests):
        groups[digest].append(index)
    return [group for group in groups.values() if len(group) > 1]


def near(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """Pairs (i, j), i < j, of 64-bit hashes that differ in at most `distance` bits; int64 [pairs, 2].

    Each hash is cut into distance + 1 bands: two that differ in no more bits than `distance` agree in one band at
    least (Manku et al., WWW 2007), so only those that share a band are compared. Of equal hashes the first
    stands for all, and is paired with each of the others.
    """
    unique, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    bounds = np.linspace(0, 64, distance + 2).astype(int)
    pairs = {(int(first[g]), k) for k, g in enumerate(group) if first[g] != k}
    for low, high in pairwise(bounds):
        band = (unique >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        keys, values = band[order], unique[order]
        for shift in range(1, len(order)):
            same = np.flatnonzero(keys[shift:] == keys[:-shift])
            if not same.size:
                break
            close = same[np.bitwise_count(values[same] ^ values[same + shift]) <= distance]
            ends = np.sort(np.stack([first[order[close]], first[order[close + shift]]], axis=1), axis=1)
            pairs.update(map(tuple, ends.tolist()))
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)
