"""Corruptions are those of the package `imagecorruptions`, which is fetched and given the same draws."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from tl_dist.data import corruptions
from tl_dist.files.packages import fetch

NAMES = [name for kind, names in corruptions.CATEGORIES.items() if kind != "geometry" for name in names]
PHOTOGRAPH = load_sample_image("china.jpg")
PICTURES = {
    "photograph": PHOTOGRAPH[60:156, 200:296],
    "small": PHOTOGRAPH[100:132, 300:332],
    "black": np.zeros((48, 48, 3), np.uint8),
}


class Draws:
    """In place of `np.random` there: the global functions, by a generator of ours."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rng, name)

    def randint(self, low: int, high: int | None = None, size: Any = None) -> Any:
        return self.rng.integers(low, high, size)

    def seed(self, seed: Any) -> None:
        """Leaves the generator as it is."""

    def default_rng(self) -> np.random.Generator:
        return np.random.default_rng(0)


@pytest.fixture(scope="module")
def library() -> Iterator[Any]:
    """The functions of the package, of whose compiler nothing is needed."""
    numba = ModuleType("numba")
    numba.njit = lambda: lambda function: function  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "numba", numba)
        patch.syspath_prepend(str(fetch(corruptions.FROST)))
        yield importlib.import_module("imagecorruptions.corruptions")
    for name in [name for name in sys.modules if name.startswith("imagecorruptions")]:
        del sys.modules[name]


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_the_package(
    library: Any, monkeypatch: pytest.MonkeyPatch, name: str, picture: str
) -> None:
    image, draws = PICTURES[picture], Draws()
    monkeypatch.setattr(library, "np", SimpleNamespace(**{**vars(np), "random": draws}))
    for severity in corruptions.SEVERITIES:
        draws.rng = np.random.default_rng(severity)
        seed = {"seed": draws.rng} if name == "impulse_noise" else {}
        theirs = np.uint8(getattr(library, name)(Image.fromarray(image), severity, **seed)).astype(int)
        made = corruptions.CORRUPTIONS[name](image / 255, severity - 1, np.random.default_rng(severity))
        ours = (np.clip(made, 0, 1) * 255).astype(np.uint8).astype(int)
        # Both cut off fractions: where float32, as there, is a hair below a whole number, it is one less.
        assert abs(ours - theirs).max() <= 1, (severity, abs(ours - theirs).max())
        assert (ours != theirs).mean() <= (0.06 if name != "brightness" else 0.2)
        assert picture == "black" or (ours != image).any()
