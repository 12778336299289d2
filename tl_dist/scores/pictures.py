"""Pictures for TensorBoard: confusion matrix, reliability diagram, and images with their classes.

Pillow draws what is shown during training: matplotlib takes 0.5 s for each matrix, and training waits.
"""

import io
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tl_dist.refusal import printable, shortened

MAX_NAMED_CLASSES = 30  # most classes for which a picture shows names and counts
MAX_SIDE = 1024  # pixels of a picture with more classes
_NAME_LENGTH = 30  # most characters of a name: longer ones leave no room for the picture
_CELL, _TILE, _GAP = 44, 160, 8  # pixels: a count, an image, and the space between
_NONE, _ALL = np.array([247, 251, 255]), np.array([8, 48, 107])
"""RGB of a share of 0 and of 1"""


def confusion_picture(counts: np.ndarray, class_names: Sequence[str]) -> bytes:
    """Draw a PNG of counts by true (row) and predicted (column) class, shaded by the fraction of the row.

    With more than MAX_NAMED_CLASSES classes it shows neither names nor numbers, and is at most MAX_SIDE pixels wide: a
    square of pixels for each pair of classes, or one for several neighbouring classes.
    """
    if len(counts) > MAX_NAMED_CLASSES:
        # The first of the classes that share a pixel.
        first = np.arange(0, len(counts), -(-len(counts) // MAX_SIDE))
        binned = np.add.reduceat(np.add.reduceat(counts, first, axis=0), first, axis=1)
        return _png(_shaded(_shares(binned), MAX_SIDE // len(binned)))
    shares, font = _shares(counts), _font(14)
    names = [_word(name, font) for name in _drawable(class_names)]
    margin = max(name.width for name in names) + int(font.size) + 3 * _GAP  # of names, and of the axis
    matrix = _shaded(shares, _CELL)
    picture = Image.new("RGB", (margin + matrix.width + _GAP, matrix.height + margin + _GAP), "white")
    picture.paste(matrix, (margin, _GAP))
    draw, end = ImageDraw.Draw(picture), _GAP + matrix.height
    for k, name in enumerate(names):
        middle = k * _CELL + _CELL // 2
        picture.paste(name, (margin - _GAP - name.width, _GAP + middle - name.height // 2))
        upright = name.rotate(90, expand=True)
        picture.paste(upright, (margin + middle - upright.width // 2, end + _GAP))
    for true, predicted in np.ndindex(*counts.shape):
        at = margin + predicted * _CELL + _CELL // 2, _GAP + true * _CELL + _CELL // 2
        colour = "white" if shares[true, predicted] > 0.5 else "black"
        draw.text(at, str(counts[true, predicted]), colour, _fitting(str(counts[true, predicted])), anchor="mm")
    middle = matrix.width // 2
    draw.text((margin + middle, picture.height - _GAP), "predicted", "black", font, anchor="mb")
    true_axis = _word("true", font).rotate(90, expand=True)
    picture.paste(true_axis, (_GAP // 2, _GAP + middle - true_axis.height // 2))
    return _png(picture)


def reliability_picture(quality: Mapping[str, Any]) -> bytes:
    """Draw a PNG of a reliability diagram: accuracy by confidence before and after calibration (`calibration`)."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["text.usetex"] = False  # a matplotlibrc in the working directory may turn LaTeX on
    figure = Figure(figsize=(4.6, 4.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="as sure as right")
    fitted = ", fitted to these images" if quality["num_fitted"] else ""
    names = {"before": "as trained", "after": f"temperature {quality['temperature']:.2f}{fitted}"}
    for (key, name), marker in zip(names.items(), "os", strict=True):
        bins = quality[key]["bins"]
        sizes = [8 + 160 * row["num_examples"] / sum(b["num_examples"] for b in bins) for row in bins]
        places = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
        ece = "" if quality[key]["ece"] is None else f", ECE {quality[key]['ece']:.3f}"
        axes.plot(*places, linewidth=1)
        axes.scatter(*places, s=sizes, marker=marker, label=f"{name}{ece}", alpha=0.7)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def grid_picture(images: np.ndarray, names: Sequence[str]) -> bytes:
    """Draw a PNG of up to 16 images, each with the name of its class."""
    images, font = images[:16], _font(12)
    columns = min(4, len(images))
    caption = int(font.size) + _GAP
    rows = -(-len(images) // columns)
    size = columns * (_TILE + _GAP) + _GAP, rows * (_TILE + caption + _GAP) + _GAP
    picture = Image.new("RGB", size, "white")
    for k, (image, name) in enumerate(zip(images, _drawable(names), strict=False)):
        left, top = _GAP + k % columns * (_TILE + _GAP), _GAP + k // columns * (_TILE + caption + _GAP)
        word = _word(name, font)
        word = word.crop((0, 0, min(word.width, _TILE), word.height))
        picture.paste(word, (left + (_TILE - word.width) // 2, top))
        tile = Image.fromarray(image)
        scale = _TILE / max(tile.size)
        kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        tile = tile.resize((round(tile.width * scale), round(tile.height * scale)), kind)
        picture.paste(tile, (left + (_TILE - tile.width) // 2, top + caption))
    return _png(picture)


def _shares(counts: np.ndarray) -> NDArray[np.floating]:
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def _shaded(shares: NDArray[np.floating], side: int) -> Image.Image:
    """Draw a square of `side` pixels for each share [rows, columns]."""
    colours = np.rint(_NONE + shares[..., None] * (_ALL - _NONE)).astype(np.uint8)
    return Image.fromarray(colours.repeat(side, axis=0).repeat(side, axis=1))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which has more alphabets than Pillow's own font, from matplotlib's files."""
    spec = find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    return ImageFont.truetype(Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf", size)


def _fitting(number: str) -> ImageFont.FreeTypeFont:
    """Return the font in which a number fits into a cell."""
    return _font(min(14, int(1.5 * _CELL / len(number))))


def _word(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw a word in black on white, as large as it is."""
    word = Image.new("RGB", (max(1, round(font.getlength(text))), sum(font.getmetrics())), "white")
    ImageDraw.Draw(word).text((0, 0), text, "black", font)
    return word


def _drawable(names: Sequence[str]) -> list[str]:
    """Shorten the names and escape control characters and bytes that are not UTF-8, which no font has."""
    return [shortened(printable(name), _NAME_LENGTH) for name in names]


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
