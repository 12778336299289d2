"""What a broken rule says."""

from __future__ import annotations

from typing import NamedTuple


class Broken(NamedTuple):
    """A rule that a config breaks: the key to look at, what is wrong and how to fix it."""

    path: tuple[str, ...]
    what: str
    fix: str
