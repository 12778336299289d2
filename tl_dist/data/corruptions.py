"""The 15 kinds of corruptions of ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261), and geometric changes.

Each is a function of an image and of a generator seeded by (corruption, severity, position), so any worker makes the
same pixels in any batch. Strengths and the order of random numbers follow the package `imagecorruptions` (which uses
NumPy's global state and needs another build of OpenCV); the elastic transform follows ImageNet-C itself. Photographs of
frost are fetched when they are needed. Corruptions are applied at the input size of the model: radii are in pixels, so
a smaller image is damaged more than one of 224.

These are not the images of ImageNet-C, and no error on them is comparable with a published one: motion blur, also in
snow, is not ImageMagick's, frost chooses from six photographs instead of five, images are not saved as JPEG of quality
85 at the end, and they may differ in size and classes from ImageNet-1k at 224 px.
"""

import io
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from tl_dist.data import displacements
from tl_dist.files.packages import fetch
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores.robustness import GEOMETRY

FROST = "imagecorruptions-imaug==1.1.5"
"""has six photographs of frost (Apache-2.0)"""
SEVERITIES = (1, 2, 3, 4, 5)
LEAST_SIDE = 32
"""pixels of the smallest images that the corruptions are designed for"""

Image = NDArray[np.floating]
"""float [side, side, 3] in [0, 1]"""
Corrupt = Callable[[Image, int, np.random.Generator], Any]
"""(image, severity - 1, generator) -> an image in [0, 1], before clipping"""


def corrupted(image: NDArray[np.uint8], name: str, severity: int, position: int) -> NDArray[np.uint8]:
    """Apply the corruption `name` to an image [side, side, 3]; `position` is that of the example in its split."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), severity, position])
    pixels = CORRUPTIONS[name](image.astype(np.float64) / 255, severity - 1, rng)
    return (np.clip(pixels, 0, 1) * 255).astype(np.uint8)  # truncated, as in the package


def named(asked: str) -> list[str]:
    """Return the corruptions in a text: "all", or categories and names separated by commas. Refuses (64) others.

    Their order is fixed, so that two runs can be compared whatever the order in the text.
    """
    known = {"all": tuple(CORRUPTIONS), **CATEGORIES, **{name: (name,) for name in CORRUPTIONS}}
    names: set[str] = set()
    for word in asked.split(","):
        if word not in known:
            what = f"'{word}' is not a corruption."
            fix = f"use all, {', '.join(CATEGORIES)}, or one of {', '.join(CORRUPTIONS)}."
            raise Refusal(what, fix=fix, code=ExitCode.USAGE)
        names |= set(known[word])
    return [name for name in CORRUPTIONS if name in names]


def prepare(names: Sequence[str]) -> None:
    """Fetch the files that these corruptions need."""
    if "frost" in names:
        fetch(FROST, "imagecorruptions/frost/frost1.png")


def gaussian_noise(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Add normal noise."""
    return x + rng.normal(size=x.shape, scale=(0.08, 0.12, 0.18, 0.26, 0.38)[level])


def shot_noise(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Replace each value by a count of photons."""
    photons = (60, 25, 12, 5, 3)[level]
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Set random values to 0 or 1."""
    struck = rng.random(x.shape) <= (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    return np.where(struck, rng.random(x.shape) <= 0.5, x)


def defocus_blur(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Blur with a disk."""
    radius, smoothing = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level]
    reach = max(8, radius)
    across = np.arange(-reach, reach + 1)
    disk = (across[:, None] ** 2 + across**2 <= radius**2).astype(np.float32)
    side = 3 if radius <= 8 else 5
    kernel = cv2.GaussianBlur(disk / disk.sum(), (side, side), sigmaX=smoothing)
    return cv2.filter2D(x, -1, kernel)


def glass_blur(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Swap pixels with near neighbours, between two blurs."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    height, width = x.shape[:2]
    pixels = (_smoothed(x, sigma) * 255).astype(np.uint8)
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    # From the last pixel to the first, each takes the colour of a neighbour, which may itself have changed before.
    steps = rng.integers(-reach, reach, size=(rounds, len(rows), len(columns), 2))
    targets = np.broadcast_to(rows[:, None] * width + columns, steps.shape[:3])
    sources = targets + steps[..., 1] * width + steps[..., 0]
    taken = list(range(height * width))
    for target, source in zip(targets.ravel().tolist(), sources.ravel().tolist(), strict=True):
        taken[target] = taken[source]
    return _smoothed(pixels.reshape(-1, 3)[taken].reshape(x.shape) / 255, sigma)


def motion_blur(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Blur along a random direction."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return _moved(x, radius, sigma, rng.uniform(-45, 45))


def zoom_blur(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Average the image with enlargements of its middle."""
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[level]
    factors = np.arange(1, end, step)
    height, width = x.shape[:2]
    total = x.copy()
    for factor in factors:
        total += _zoomed(x, factor)[:height, :width]
    return total / (len(factors) + 1)


def snow(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Whiten the image and add falling flakes."""
    mean, spread, zoom, least, radius, sigma, share = (
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
    whiter = share * x + (1 - share) * np.maximum(x, grey * 1.5 + 0.5)
    return whiter + layer + np.rot90(layer, k=2)


def frost(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Add part of a photograph of frost."""
    remaining, share = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[level]
    height, width = x.shape[:2]
    picture = _frost(int(rng.integers(6)), height, width)
    top = int(rng.integers(0, picture.shape[0] - height))
    left = int(rng.integers(0, picture.shape[1] - width))
    return remaining * x + share * (picture[top : top + height, left : left + width] / 255)


def fog(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Add clouds."""
    thickness, decay = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    height, width = x.shape[:2]
    side = 1 << (max(height, width) - 1).bit_length()
    clouds = _plasma(side, decay, rng)[:height, :width, None]
    brightest = x.max()
    return (x + thickness * clouds) * brightest / (brightest + thickness)


def brightness(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Raise the value in HSV."""
    value = x.max(axis=-1, keepdims=True)  # of HSV: hue and saturation stay, so that all channels grow alike
    brighter = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 1)
    return np.where(value > 0, x * (brighter / np.where(value > 0, value, 1)), brighter)


def contrast(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Move all values toward their mean."""
    means = x.mean(axis=(0, 1), keepdims=True)
    return (x - means) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + means


def pixelate(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Shrink the image, and enlarge it without smoothing."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    picture, (height, width) = Pillow.fromarray(_bytes(x)), x.shape[:2]
    small = picture.resize((int(width * share), int(height * share)), Pillow.Resampling.BOX)
    return np.asarray(small.resize((width, height), Pillow.Resampling.NEAREST)) / 255


def jpeg_compression(x: Image, level: int, rng: np.random.Generator) -> Any:
    """Compress as JPEG of low quality."""
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
"""the first four belong to ImageNet-C"""
CORRUPTIONS: Mapping[str, Corrupt] = {
    name: getattr(displacements, name, None) or globals()[name] for names in CATEGORIES.values() for name in names
}


def _bytes(x: Image) -> NDArray[np.uint8]:
    return np.rint(x * 255).astype(np.uint8)


def _smoothed(x: Image, sigma: float) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(x, (sigma, sigma, 0), mode="nearest"))


def _moved(x: Image, radius: int, sigma: float, angle: float) -> NDArray[np.float64]:
    """Blur along a line to one side, with the weights of half a Gaussian; edges are repeated."""
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    turn = math.radians(angle)
    height, breadth = x.shape[:2]
    wide = np.pad(x, ((width, width), (width, width), (0, 0)), mode="edge")
    blurred = np.zeros(x.shape)
    for k, weight in enumerate(weights):
        down, right = (-math.ceil(k * part - 0.5) for part in (math.sin(turn), math.cos(turn)))
        if abs(down) >= height or abs(right) >= breadth:
            break  # beyond the image
        top, left = width - down, width - right
        blurred += weight * wide[top : top + height, left : left + breadth]
    return blurred


def _zoomed(x: Image, factor: float) -> NDArray[np.float64]:
    """Enlarge the middle of an image to slightly more than the size of the image: bilinear, corners aligned."""
    for axis in (0, 1):
        side = x.shape[axis]
        visible = math.ceil(side / factor)
        places = (side - visible) // 2 + np.linspace(0, visible - 1, round(visible * factor))
        first = np.minimum(places.astype(int), side - 2) if side > 1 else places.astype(int)
        share = (places - first).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        x = np.take(x, first, axis) * (1 - share) + np.take(x, np.minimum(first + 1, side - 1), axis) * share
    return np.asarray(x, np.float64)


def _plasma(side: int, decay: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw clouds [side, side] in [0, 1] by the diamond-square algorithm; `side` is a power of 2, edges wrap around."""
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
    """Return a photograph of frost, RGB, larger than the image."""
    name = f"imagecorruptions/frost/frost{number + 1}.{'png' if number < 3 else 'jpg'}"
    picture = cv2.imread(str(fetch(FROST, name)))
    if picture is None:
        raise Refusal(f"{name} of {FROST} cannot be decoded.", fix="remove it from the cache.", code=ExitCode.DATA)
    scale = 1.1 * max(1, height / picture.shape[0], width / picture.shape[1])
    size = (math.ceil(picture.shape[1] * scale), math.ceil(picture.shape[0] * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)[..., ::-1], np.uint8)
