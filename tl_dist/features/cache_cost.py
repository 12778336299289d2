"""Whether caching the frozen part pays: its forward passes saved, against those made once and the bytes to the disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """What a machine does, all workers together."""

    forward_s: float
    """of the frozen part, for one image"""
    row_bytes: int
    """of its output for one image"""
    disk_bytes_per_s: float
    free_bytes: int


@dataclass(frozen=True)
class Choice:
    """The answer, and a line that says why."""

    on: bool
    text: str


def choose(measured: Measured, *, passes: float, missing: int) -> Choice:
    """`passes` images go through the frozen part without a cache; with one, `missing` have to be computed once.

    Reading is counted at the speed of the disk as well, though the page cache is mostly faster.
    """
    size = missing * measured.row_bytes
    without_s = passes * measured.forward_s
    reads_s = passes * measured.row_bytes / measured.disk_bytes_per_s
    cached_s = missing * measured.forward_s + size / measured.disk_bytes_per_s + reads_s
    saved_s = without_s - cached_s
    if size > measured.free_bytes:
        return Choice(
            False, f"prefix cache: off: {_bytes(size)} do not fit into {_bytes(measured.free_bytes)}"
        )
    if saved_s <= 0:
        why = f"would take {_time(cached_s)}, the frozen part without it {_time(without_s)}"
        return Choice(False, f"prefix cache: off: {why}")
    why = f"saves about {_time(saved_s)} of {_time(without_s)}; {_bytes(size)} to write"
    return Choice(True, f"prefix cache: on: {why}")


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
