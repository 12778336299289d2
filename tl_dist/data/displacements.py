"""Corruptions that move pixels: the elastic transform of ImageNet-C, and shifts, rotations and scalings.

Each takes an image float [side, side, 3] in [0, 1], the severity minus 1, and a generator: see `corruptions`.
"""

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_ELASTIC_SIDE = 244 / 224
"""ImageNet-C multiplies its fractions of the side by 244 instead of 224, by a slip of its authors"""

Image = NDArray[np.floating]


def elastic_transform(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Move three points at random, and the image with them by an affine map; then each pixel by a smooth random field.

    As ImageNet-C was made (make_imagenet_c.py of hendrycks/robustness): the points move the most at severities 1 and 2,
    which therefore change an image more than 3 to 5. All lengths are fractions of the side: at 224 px they are the
    lengths of ImageNet-C.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    strength, sigma, reach = (
        (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02),
    )[level]  # fmt: skip
    side, unit = x.shape[0], x.shape[0] * _ELASTIC_SIDE
    middle, arm = side // 2, side // 3
    corners = np.array(
        [[middle + arm, middle + arm], [middle + arm, middle - arm], [middle - arm, middle - arm]], np.float32
    )
    moved = corners + rng.uniform(-reach * unit, reach * unit, corners.shape).astype(np.float32)
    # float32, as in ImageNet-C: OpenCV's sampling points for float32 and float64 differ by up to 1/64 px.
    placed = _warped(x.astype(np.float32), cv2.getAffineTransform(corners, moved))
    right, down = (
        gaussian_filter(rng.uniform(-1, 1, x.shape[:2]), sigma * unit, mode="reflect", truncate=3) * (strength * unit)
        for _ in range(2)
    )
    places = np.mgrid[:side, :side] + np.stack([down, right])
    return np.stack([map_coordinates(placed[..., k], places, order=1, mode="reflect") for k in range(3)], -1)


def shift(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Shift by 2 to 10 % of the side, in any direction; the border is filled by reflection."""
    angle, far = rng.uniform(0, 2 * math.pi), 0.02 * (level + 1) * x.shape[0]
    return _warped(x, np.array([[1, 0, far * math.cos(angle)], [0, 1, far * math.sin(angle)]]))


def rotate(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Rotate by 5 to 25 degrees, either way."""
    middle = ((x.shape[1] - 1) / 2, (x.shape[0] - 1) / 2)
    return _warped(x, cv2.getRotationMatrix2D(middle, 5.0 * (level + 1) * float(rng.choice([-1, 1])), 1))


def resize(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Scale objects up by a factor of 1.1 to 1.5, or down by the same factor."""
    middle = ((x.shape[1] - 1) / 2, (x.shape[0] - 1) / 2)
    return _warped(x, cv2.getRotationMatrix2D(middle, 0, (1 + 0.1 * (level + 1)) ** rng.choice([-1, 1])))


def _warped(x: Image, matrix: Any) -> Any:
    """Apply an affine map, bilinear; the border is filled by reflection."""
    return cv2.warpAffine(
        x, matrix, (x.shape[1], x.shape[0]), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
