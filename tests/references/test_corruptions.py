"""Corruptions are those of `imagecorruptions`, fetched and given the same draws; the elastic one is ImageNet-C's own.

That package has another elastic transform than the images that are published (arXiv 1903.12261). Here it is computed by
what the authors published of how they made those, with scikit-image, OpenCV and SciPy, as they did.
"""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates
from skimage.filters import gaussian
from sklearn.datasets import load_sample_image

from tl_dist.data import corruptions
from tl_dist.files.packages import fetch

NAMES = [name for kind, names in corruptions.CATEGORIES.items() if kind != "geometry" for name in names]
NAMES.remove("elastic_transform")
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


ELASTIC = (
    (488, 170.8, 24.4),
    (488, 19.52, 48.8),
    (12.2, 2.44, 4.88),
    (17.08, 2.44, 4.88),
    (29.28, 2.44, 4.88),
)
"""by severity, in pixels of an image of 224: strength and deviation of the field, reach of the points"""


def elastic(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Levels float [224, 224, 3]: triangle to triangle, then a smoothed uniform field to each axis."""
    strength, sigma, reach = ELASTIC[severity - 1]
    x, (height, width) = image.astype(np.float32) / 255, image.shape[:2]
    centre, arm = np.float32([height, width]) // 2, min(height, width) // 3
    triangle = np.float32([centre + arm, [centre[0] + arm, centre[1] - arm], centre - arm])
    other = triangle + rng.uniform(-reach, reach, triangle.shape).astype(np.float32)
    x = cv2.warpAffine(x, cv2.getAffineTransform(triangle, other), (width, height), borderMode=cv2.BORDER_REFLECT_101)
    across = gaussian(rng.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3) * strength
    along = gaussian(rng.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3) * strength
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    sought = np.stack([rows + along, columns + across])
    moved = [map_coordinates(x[..., k], sought, order=1, mode="reflect") for k in range(3)]
    return np.clip(np.stack(moved, axis=-1), 0, 1) * 255


@pytest.mark.parametrize("severity", corruptions.SEVERITIES)
def test_the_elastic_transform_is_that_of_imagenet_c(severity: int) -> None:
    for image in (PHOTOGRAPH[60:284, 200:424], np.zeros((224, 224, 3), np.uint8)):
        theirs = elastic(image, severity, np.random.default_rng(severity)).astype(np.uint8).astype(int)
        made = corruptions.CORRUPTIONS["elastic_transform"](image / 255, severity - 1, np.random.default_rng(severity))
        ours = (np.clip(made, 0, 1) * 255).astype(np.uint8).astype(int)
        assert abs(ours - theirs).max() <= 1 and (ours != theirs).mean() <= 0.01


def test_it_changes_an_image_as_much_as_imagenet_c_does() -> None:
    """Levels by which the authors' script changes photographs at 224 px: 1 and 2 are the strongest."""
    changes = np.zeros(5)
    for image in (PHOTOGRAPH[60:284, 200:424], load_sample_image("flower.jpg")[100:324, 200:424]):
        for k in range(6):
            for severity in corruptions.SEVERITIES:
                made = corruptions.corrupted(image, "elastic_transform", severity, k)
                changes[severity - 1] += abs(made.astype(float) - image).mean() / 12
    strength = changes / changes[2]
    np.testing.assert_allclose(strength, np.array([32.3, 43.9, 18.7, 18.9, 19.5]) / 18.7, rtol=0.25)


def test_its_lengths_are_shares_of_the_side() -> None:
    """Of a picture at twice the size with points at the same shares, and no field worth the name, the same map."""
    small = cv2.GaussianBlur(PHOTOGRAPH[60:284, 200:424], (0, 0), 8)
    large = cv2.resize(small, (448, 448), interpolation=cv2.INTER_LINEAR)
    made = [
        corruptions.CORRUPTIONS["elastic_transform"](image / 255, 0, np.random.default_rng(3))
        for image in (small, large)
    ]
    halved = cv2.resize(made[1], (224, 224), interpolation=cv2.INTER_AREA)
    assert abs(halved - made[0]).mean() < 0.02 < abs(made[0] - small / 255).mean()
