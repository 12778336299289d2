"""What a data set holds: classes, sizes, kinds of files, and a picture of samples."""

from __future__ import annotations

import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tl_dist.curation import images
from tl_dist.curation.layout import opened
from tl_dist.datasets import Source

_THREADS = 8
_TILE = 96
_LABEL = 14
_MAX_CLASSES = 20
_SAMPLES = 8


def inspect(path: Path, sheet: Path | None) -> dict[str, Any]:
    """Facts about the data set at `path`, as JSON; with `sheet`, a PNG of samples of each class is put there.

    No pixel is decoded but those of the samples. `imbalance` is the largest class over the smallest.
    """
    data, splits = opened(path)
    facts: dict[str, Any] = {
        "kind": data.name,
        "path": data.path,
        "classes": list(splits["train"].class_names),
        "splits": {name: _split(source) for name, source in splits.items()},
    }
    if sheet is not None:
        picture = contact_sheet(splits["train"])
        if picture is not None:
            picture.save(sheet, "PNG")
            facts["sheet"] = str(sheet)
    return facts


def _split(source: Source) -> dict[str, Any]:
    counts = np.bincount(source.labels, minlength=source.num_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on large images: the threads below share this setting
        with ThreadPoolExecutor(_THREADS) as pool:
            headers = list(pool.map(_header, images.stored(source), chunksize=64))
    sizes = np.array([header[:2] for header in headers if header is not None]).reshape(-1, 2)
    return {
        "num_examples": source.num_examples,
        "counts": {name: int(n) for name, n in zip(source.class_names, counts, strict=True)},
        "imbalance": float(counts.max() / counts.min()) if counts.min() else None,
        "sizes": {
            name: [int(v) for v in np.rint(measure(sizes, axis=0))]
            for name, measure in (("min", np.min), ("median", np.median), ("max", np.max))
        }
        if len(sizes)
        else {},
        "modes": dict(Counter(header[2] for header in headers if header is not None)),
        "formats": dict(Counter(header[3] for header in headers if header is not None)),
        "bytes": sum(header[4] for header in headers if header is not None),
        "unreadable": sum(header is None for header in headers),
    }


def _header(image: images.Stored) -> tuple[int, int, str, str, int] | None:
    """Width, height, mode, format and bytes."""
    try:
        if isinstance(image, np.ndarray):
            found, size = images.opened(image), image.nbytes
        elif image.length is None and image.offset == 0:
            with Image.open(image.path) as found:
                size = image.path.stat().st_size
        else:
            found, size = images.opened(image), image.length or 0
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return found.width, found.height, found.mode, found.format or "pixels", size


def contact_sheet(source: Source) -> Image.Image | None:
    """A few samples of each class in a row with its name; None for a source that makes its images up."""
    every = list(images.stored(source))
    if not every:
        return None
    labels = source.labels
    shown = np.unique(labels)[:_MAX_CLASSES]
    sheet = Image.new("RGB", (_SAMPLES * _TILE, len(shown) * (_TILE + _LABEL)), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(shown):
        members = np.flatnonzero(labels == label)
        picked = members[np.linspace(0, len(members) - 1, min(_SAMPLES, len(members))).astype(int)]
        top = row * (_TILE + _LABEL)
        text = f"{source.class_names[label]} ({len(members):,})"
        draw.text((3, top + 1), text.encode("latin1", "replace").decode("latin1"), fill=(255, 255, 255))
        for column, k in enumerate(picked):
            sheet.paste(_tile(every[k]), (column * _TILE, top + _LABEL))
    return sheet


def _tile(image: images.Stored) -> Image.Image:
    tile = Image.new("RGB", (_TILE, _TILE), (24, 24, 24))
    try:
        found = images.opened(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        ImageDraw.Draw(tile).line((0, 0, _TILE, _TILE), fill=(255, 0, 0), width=3)
        return tile
    scale = (_TILE - 2) / max(found.size)
    width, height = (max(1, round(side * scale)) for side in found.size)
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    tile.paste(found.resize((width, height), kind), (1, 1))
    return tile
