"""The explanations that workers compute, and the pictures of them: heat over an image, and panels with captions."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tl_dist.files.npz import read_npz, save_npz
from tl_dist.refusal import printable, shortened

GAP, CAPTION = 6, 22
_LEAST_SIDE = 224
_STRONGEST = 99
"""percentile of attributions that gets the full colour: a single pixel would outshine all others"""
_ANSWER = "explained.npz"


class Explained(NamedTuple):
    """Explanations of images, in the order of the request."""

    images: NDArray[np.uint8]  # [n, size, size, 3], as the network sees them
    logits: NDArray[np.float32]
    """[n, classes], divided by the temperature of a calibrated run, as in `predict`"""
    classes: NDArray[np.int32]
    """[n]: the class that is explained"""
    cam: NDArray[np.float32]  # [n, size, size], 0 to 1
    integrated: NDArray[np.float32]
    """[n, size, size], attributions summed over a pixel's three colours; [0, ...] if not requested"""
    gaps: NDArray[np.float32]  # [n]: relative difference of their sum from the difference of the outputs

    def save(self, directory: Path) -> None:
        """Write the arrays into `directory`."""
        save_npz(directory / _ANSWER, **self._asdict())

    @classmethod
    def load(cls, directory: Path) -> Explained:
        """Read what `save` wrote into `directory`."""
        with (directory / _ANSWER).open("rb") as file:
            return cls(**read_npz(file))


def overlay(image: NDArray[np.uint8], cam: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Lay colours over an image [h, w, 3], which are the stronger the larger its map [h, w] in [0, 1]."""
    from matplotlib import colormaps

    strength = np.clip(cam, 0, 1)[..., None]
    colour = colormaps["inferno"](0.3 + 0.7 * strength[..., 0])[..., :3] * 255
    share = 0.75 * strength**0.8
    return np.rint(image * (1 - share) + colour * share).astype(np.uint8)


def signed(attributions: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colour attributions [h, w]: red for the class, blue against it, on white; returns [h, w, 3]."""
    from matplotlib import colormaps

    largest = max(float(np.percentile(np.abs(attributions), _STRONGEST)), 1e-12)
    values = np.clip(attributions / largest, -1, 1) / 2 + 0.5
    return (colormaps["RdBu_r"](values)[..., :3] * 255).round().astype(np.uint8)


def side_by_side(panels: list[tuple[str, NDArray[np.uint8]]]) -> Image.Image:
    """Put panels of one size in a row, each below its caption."""
    side = max(_LEAST_SIDE, len(panels[0][1]))
    sheet = Image.new("RGB", (len(panels) * (side + GAP) - GAP, side + CAPTION), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for k, (caption, pixels) in enumerate(panels):
        left = k * (side + GAP)
        caption = shortened(printable(caption), side)  # longer ones are too wide at a pixel per character
        while draw.textlength(caption, font) > side and len(caption) > 1:
            caption = caption.removesuffix("…")[:-1] + "…"
        draw.text((left + 2, 3), caption, fill=(20, 20, 20), font=font)
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left, CAPTION))
    return sheet


def is_side_by_side(width: int, height: int) -> bool:
    """Return whether `side_by_side` may have made a picture of this size."""
    return not (width + GAP) % (height - CAPTION + GAP) and height >= _LEAST_SIDE + CAPTION
