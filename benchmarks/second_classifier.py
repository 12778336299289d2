"""Another head on features that are already there, ten epochs: a whole command against `model.fit` (head_training)."""

from collections.abc import Iterator

from benchmarks.comparison import Comparison
from benchmarks.head_training import seconds


def comparisons() -> Iterator[Comparison]:
    _, second, fit = seconds()
    rivals = ", ".join(f"{name} {value:.0f} s" for name, value in fit.items())
    yield Comparison(
        "second_classifier", "x", fit["float32"] / second, "model.fit float32", 1.0, bar=100.0,
        note=f"{second:.1f} s from start to end; model.fit (scaled): {rivals}",
    )  # fmt: skip
