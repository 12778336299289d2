"""A digest of named arrays, which identifies weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the sha256 over (path, dtype, shape, bytes) of all arrays, in the order of their paths."""
    total = hashlib.sha256()
    for path in sorted(arrays):
        array = np.ascontiguousarray(arrays[path])
        total.update(f"{path} {array.dtype} {array.shape} ".encode())
        total.update(array.data if array.size else b"")
    return total.hexdigest()
