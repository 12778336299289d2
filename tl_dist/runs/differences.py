"""Describe the differences between two nested mappings, for messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any


def differences(old: Mapping[str, Any], new: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """List the changes below `keys`, as "optimizer.learning_rate: 0.1 -> 0.01", in the order of `keys`."""
    changes = []
    for key in keys:
        before, after = _flat(key, old.get(key, _ABSENT)), _flat(key, new.get(key, _ABSENT))
        for dotted in [*before, *(dotted for dotted in after if dotted not in before)]:
            was, is_ = before.get(dotted, _ABSENT), after.get(dotted, _ABSENT)
            if was != is_ and not (was is _ABSENT and is_ is _ABSENT):
                changes.append(f"{dotted}: {_short(was)} -> {_short(is_)}")
    return changes


_ABSENT: Any = object()


def _flat(dotted: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {leaf: item for key in value for leaf, item in _flat(f"{dotted}.{key}", value[key]).items()}
    return {dotted: list(value) if isinstance(value, tuple) else value}


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "(none)"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
