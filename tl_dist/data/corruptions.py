"""The 15 kinds of corruptions of ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261), and changes of place.

Each is a function of an image and of a generator that is seeded by (corruption, severity, position): any worker, in any
batch, makes the same pixels. Strengths and the order of draws are those of the package `imagecorruptions`, which draws
from NumPy's global state and needs another build of OpenCV, and of the elastic transform those of ImageNet-C itself;
photographs of frost are fetched when they are needed. Applied at the size of the model: radii are in pixels, so a
smaller image is harmed more than one of 224.

These are not the images of ImageNet-C, and no error on them is comparable with a published one: motion blur, and that
of snow, is not ImageMagick's, frost draws from six photographs in place of five, nothing is saved as a JPEG of quality
85 in the end, and images may have another size and other classes than those of ImageNet-1k at 224 px.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tl_dist.data import displacements
from tl_dist.files.packages import fetch
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores.robustness import GEOMETRY

FROST = "imagecorruptions-imaug==1.1.5"
"""has six photographs of frost (Apache-2.0)"""
SEVERITIES = (1, 2, 3, 4, 5)
LEAST_SIDE = 32
"""pixels of the smallest images that the corruptions are made for"""

Image = NDArray[np.floating]
"""float [side, side, 3] in [0, 1]"""
Corrupt = Callable[[Image, int, np.random.Generator], Any]
"""(image, severity - 1, generator) -> an image in [0, 1], before clipping"""


def corrupted(image: NDArray[np.uint8], name: str, severity: int, position: int) -> NDArray[np.uint8]:
    """The image [side, side, 3] as the corruption `name` leaves it; `position` is that of the example in its split."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), severity, position])
    found = CORRUPTIONS[name](image.astype(np.float64) / 255, severity - 1, rng)
    return (np.clip(found, 0, 1) * 255).astype(np.uint8)  # cut off, as there


def named(asked: str) -> list[str]:
    """The corruptions that a text asks for: "all", or categories and names, parted by commas. Refuses (64) others.

    Their order is always the same: two runs are compared on the same ones, however these were named.
    """
    found: list[str] = []
    for word in asked.split(","):
        if word == "all":
            found += CORRUPTIONS
        elif word in CATEGORIES:
            found += CATEGORIES[word]
        elif word in CORRUPTIONS:
            found.append(word)
        else:
            raise Refusal(
                f"'{word}' is no corruption.",
                fix=f"use all, {', '.join(CATEGORIES)}, or one of {', '.join(CORRUPTIONS)}.",
                code=ExitCode.USAGE,
            )
    return [name for name in CORRUPTIONS if name in found]


def prepare(names: Sequence[str]) -> None:
    """Fetch what some of these need."""
    if "frost" in names:
        fetch(FROST, "imagecorruptions/frost/frost1.png")


def gaussian_noise(x: Image, level: int, rng: np.random.Generator) -> Any:
    return x + rng.normal(size=x.shape, scale=(0.08, 0.12, 0.18, 0.26, 0.38)[level])


def shot_noise(x: Image, level: int, rng: np.random.Generator) -> Any:
    photons = (60, 25, 12, 5, 3)[level]
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Image, level: int, rng: np.random.Generator) -> Any:
    struck = rng.random(x.shape) <= (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    return np.where(struck, rng.random(x.shape) <= 0.5, x)


def defocus_blur(x: Image, level: int, rng: np.random.Generator) -> Any:
    radius, smoothing = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level]
    reach = max(8, radius)
    across = np.arange(-reach, reach + 1)
    disk = (across[:, None] ** 2 + across**2 <= radius**2).astype(np.float32)
    side = 3 if radius <= 8 else 5
    kernel = cv2.GaussianBlur(disk / disk.sum(), (side, side), sigmaX=smoothing)
    return cv2.filter2D(x, -1, kernel)


def glass_blur(x: Image, level: int, rng: np.random.Generator) -> Any:
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    height, width = x.shape[:2]
    pixels = (_smoothed(x, sigma) * 255).astype(np.uint8)
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    # From the last pixel to the first, each takes the colour of a neighbour, which may have taken another's before.
    steps = rng.integers(-reach, reach, size=(rounds, len(rows), len(columns), 2))
    targets = np.broadcast_to(rows[:, None] * width + columns, steps.shape[:3])
    sources = targets + steps[..., 1] * width + steps[..., 0]
    taken = list(range(height * width))
    for target, source in zip(targets.ravel().tolist(), sources.ravel().tolist(), strict=True):
        taken[target] = taken[source]
    return _smoothed(pixels.reshape(-1, 3)[taken].reshape(x.shape) / 255, sigma)


def motion_blur(x: Image, level: int, rng: np.random.Generator) -> Any:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return _moved(x, radius, sigma, rng.uniform(-45, 45))


def zoom_blur(x: Image, level: int, rng: np.random.Generator) -> Any:
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[level]
    factors = np.arange(1, end, step)
    height, width = x.shape[:2]
    total = x.copy()
    for factor in factors:
        total += _zoomed(x, factor)[:height, :width]
    return total / (len(factors) + 1)


def snow(x: Image, level: int, rng: np.random.Generator) -> Any:
    mean, spread, zoom, least, radius, sigma, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    height, width = x.shape[:2]
    flakes = _zoomed(rng.normal(size=(height, width), loc=mean, scale=spread)[..., None], zoom)
    flakes[flakes < least] = 0
    falling = _moved(np.clip(flakes, 0, 1), int(radius), sigma, rng.uniform(-135, -45))
    layer = np.round(falling[:height, :width] * 255) / 255
    grey = cv2.cvtColor(x.astype(np.float32), cv2.COLOR_RGB2GRAY)[..., None]
    whiter = kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5)
    return whiter + layer + np.rot90(layer, k=2)


def frost(x: Image, level: int, rng: np.random.Generator) -> Any:
    kept, share = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[level]
    height, width = x.shape[:2]
    picture = _frost(int(rng.integers(6)), height, width)
    top = int(rng.integers(0, picture.shape[0] - height))
    left = int(rng.integers(0, picture.shape[1] - width))
    return kept * x + share * (picture[top : top + height, left : left + width] / 255)


def fog(x: Image, level: int, rng: np.random.Generator) -> Any:
    thickness, decay = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    height, width = x.shape[:2]
    side = 1 << (max(height, width) - 1).bit_length()
    clouds = _plasma(side, decay, rng)[:height, :width, None]
    brightest = x.max()
    return (x + thickness * clouds) * brightest / (brightest + thickness)


def brightness(x: Image, level: int, rng: np.random.Generator) -> Any:
    value = x.max(axis=-1, keepdims=True)  # of HSV: hue and saturation stay, so that all channels grow alike
    brighter = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 1)
    return np.where(value > 0, x * (brighter / np.where(value > 0, value, 1)), brighter)


def contrast(x: Image, level: int, rng: np.random.Generator) -> Any:
    means = x.mean(axis=(0, 1), keepdims=True)
    return (x - means) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + means


def pixelate(x: Image, level: int, rng: np.random.Generator) -> Any:
    from PIL import Image as Pillow

    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    picture, (height, width) = Pillow.fromarray(_bytes(x)), x.shape[:2]
    small = picture.resize((int(width * share), int(height * share)), Pillow.Resampling.BOX)
    return np.asarray(small.resize((width, height), Pillow.Resampling.NEAREST)) / 255


def jpeg_compression(x: Image, level: int, rng: np.random.Generator) -> Any:
    from PIL import Image as Pillow

    file = io.BytesIO()
    Pillow.fromarray(_bytes(x)).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return np.asarray(Pillow.open(file)) / 255


CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "geometry": GEOMETRY,
}
"""the first four are those of ImageNet-C"""
_FUNCTIONS = {**vars(displacements), **globals()}
CORRUPTIONS: Mapping[str, Corrupt] = {
    name: _FUNCTIONS[name] for names in CATEGORIES.values() for name in names
}


def _bytes(x: Image) -> NDArray[np.uint8]:
    return np.rint(x * 255).astype(np.uint8)


def _smoothed(x: Image, sigma: float) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(x, (sigma, sigma, 0), mode="nearest"))


def _moved(x: Image, radius: int, sigma: float, angle: float) -> NDArray[np.float64]:
    """Blurred along a line to one side, with the weights of half a Gaussian; edges are repeated."""
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    turn = math.radians(angle)
    height, breadth = x.shape[:2]
    wide = np.pad(x, ((width, width), (width, width), (0, 0)), mode="edge")
    found = np.zeros(x.shape)
    for k, weight in enumerate(weights):
        down, right = (-math.ceil(k * part - 0.5) for part in (math.sin(turn), math.cos(turn)))
        if abs(down) >= height or abs(right) >= breadth:
            break  # beyond the image
        top, left = width - down, width - right
        found += weight * wide[top : top + height, left : left + breadth]
    return found


def _zoomed(x: Image, factor: float) -> NDArray[np.float64]:
    """The middle of an image, enlarged: bilinear, corners to corners; a little larger than the image itself."""
    for axis in (0, 1):
        side = x.shape[axis]
        kept = math.ceil(side / factor)
        places = (side - kept) // 2 + np.linspace(0, kept - 1, round(kept * factor))
        first = np.minimum(places.astype(int), side - 2) if side > 1 else places.astype(int)
        share = (places - first).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        x = np.take(x, first, axis) * (1 - share) + np.take(x, np.minimum(first + 1, side - 1), axis) * share
    return np.asarray(x, np.float64)


def _plasma(side: int, decay: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Clouds in [0, 1] by the diamond-square algorithm, [side, side] of a power of 2; opposite edges fit."""
    heights = np.zeros((side, side), np.float32)
    step, roughness = side, 100.0

    def rough(total: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(total / 4 + roughness * rng.uniform(-roughness, roughness, total.shape))

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = rough(pairs + np.roll(pairs, -1, axis=1))
        middles = heights[half::step, half::step]
        above = middles + np.roll(middles, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        heights[::step, half::step] = rough(above)
        beside = middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        heights[half::step, ::step] = rough(beside)
        step, roughness = half, roughness / decay
    heights -= heights.min()
    heights /= heights.max()
    return heights


@lru_cache(maxsize=12)
def _frost(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """A photograph of frost, RGB, larger than the image."""
    name = f"imagecorruptions/frost/frost{number + 1}.{'png' if number < 3 else 'jpg'}"
    picture = cv2.imread(str(fetch(FROST, name)))
    if picture is None:
        raise Refusal(
            f"{name} of {FROST} cannot be decoded.", fix="remove it from the cache.", code=ExitCode.DATA
        )
    scale = 1.1 * max(1, height / picture.shape[0], width / picture.shape[1])
    size = (math.ceil(picture.shape[1] * scale), math.ceil(picture.shape[0] * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)[..., ::-1], np.uint8)
