"""Pictures for TensorBoard: confusion matrix, reliability diagram, and images with their classes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tl_dist.refusal import printable, shortened

MAX_NAMED_CLASSES = 30  # most classes for which a picture shows names and counts
MAX_SIDE = 1024  # pixels of a picture with more classes
_NAME_LENGTH = 30  # most characters of a name: longer ones leave no room for the picture


def confusion_picture(counts: np.ndarray, class_names: Sequence[str]) -> bytes:
    """Draw a PNG of counts by true (row) and predicted (column) class, shaded by the fraction of the row.

    With more than MAX_NAMED_CLASSES classes it shows neither names nor numbers, and is at most MAX_SIDE pixels wide: a
    square of pixels for each pair of classes, or one for several neighbouring classes.
    """
    if len(counts) > MAX_NAMED_CLASSES:
        return _pixels(counts)
    names = _drawable(class_names)
    shares = _shares(counts)
    side = 2.0 + 0.45 * len(counts)
    figure = _figure(side + 0.6, side)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(counts))
    # Names are plain text: "$x_1$" is not a formula.
    axes.set_xticks(ticks, names, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    for true, predicted in np.ndindex(*counts.shape):
        colour = "white" if shares[true, predicted] > 0.5 else "black"
        axes.text(predicted, true, str(counts[true, predicted]), ha="center", va="center", color=colour)
    axes.set(xlabel="predicted", ylabel="true")
    return _png(figure)


def _shares(counts: np.ndarray) -> np.ndarray:
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def _pixels(counts: np.ndarray) -> bytes:
    from matplotlib import colormaps
    from PIL import Image

    # The first of the classes that share a pixel.
    first = np.arange(0, len(counts), -(-len(counts) // MAX_SIDE))
    binned = np.add.reduceat(np.add.reduceat(counts, first, axis=0), first, axis=1)
    picture = Image.fromarray(colormaps["Blues"](_shares(binned), bytes=True)).convert("RGB")
    side = MAX_SIDE // len(binned) * len(binned)
    buffer = io.BytesIO()
    picture.resize((side, side), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def reliability_picture(quality: Mapping[str, Any]) -> bytes:
    """Draw a PNG of a reliability diagram: accuracy by confidence before and after calibration (`calibration`)."""
    figure = _figure(4.6, 4.4)
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
    return _png(figure)


def grid_picture(images: np.ndarray, names: Sequence[str]) -> bytes:
    """Draw a PNG of up to 16 images, each with the name of its class."""
    images = images[:16]
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = _figure(1.6 * columns, 1.8 * rows)
    for k, (image, name) in enumerate(zip(images, _drawable(names), strict=False)):
        axes = figure.add_subplot(rows, columns, k + 1)
        axes.imshow(image)
        axes.set_title(name, fontsize=8, parse_math=False)
        axes.set_axis_off()
    return _png(figure)


def _drawable(names: Sequence[str]) -> list[str]:
    """Shorten the names and escape control characters and bytes that are not UTF-8, which no font has."""
    return [shortened(printable(name), _NAME_LENGTH) for name in names]


def _figure(width: float, height: float) -> Any:
    """Create an empty figure, in inches, without LaTeX, which a matplotlibrc in the working directory may turn on."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["text.usetex"] = False
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
