"""Inspect a data set: classes, sizes, kinds of files, and a contact sheet of samples."""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from tl_dist.datasets import Source
from tl_dist.datasets.curation import findings, images
from tl_dist.datasets.curation.layout import opened
from tl_dist.datasets.headers import DEEP, Fault, fault, look
from tl_dist.datasets.store import Location
from tl_dist.files.atomic import write_output
from tl_dist.files.foreign import open_regular
from tl_dist.files.picture import refuse_other_picture

_THREADS = 8
_TILE = 96
_LABEL = 14
_MAX_CLASSES = 20
_SAMPLES = 8
_DAMAGED = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_DEEP_DECODED = 64  # number of images of 16 bits that are decoded


class _Looked(NamedTuple):
    width: int
    height: int
    mode: str
    format: str
    bytes: int
    traits: frozenset[str]


def inspect(path: Path, sheet: Path | None) -> dict[str, Any]:
    """Return facts about the data set at `path`, as JSON; with `sheet`, write a PNG of samples of each class there.

    Only the samples and some images of 16 bits are decoded. `imbalance` is the size of the largest class over the
    smallest.
    """
    if sheet is not None:
        refuse_other_picture(sheet, _is_sheet, option="--sheet")
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
            content = io.BytesIO()
            picture.save(content, "PNG")
            write_output(sheet, content.getvalue(), option="--sheet")
            facts["sheet"] = str(sheet)
    return facts


def _is_sheet(width: int, height: int) -> bool:
    return width == _SAMPLES * _TILE and not height % (_TILE + _LABEL)


def _split(source: Source) -> dict[str, Any]:
    counts = np.bincount(source.labels, minlength=source.num_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Pillow, on large images: the threads below share this setting
        with ThreadPoolExecutor(_THREADS) as pool:
            headers = list(pool.map(_header, images.stored(source), chunksize=64))
    known = [header for header in headers if header is not None]
    sizes = np.array([header[:2] for header in known]).reshape(-1, 2)
    deep = [k for k, header in enumerate(headers) if header is not None and DEEP in header.traits]
    deep = [deep[at] for at in np.linspace(0, len(deep) - 1, min(_DEEP_DECODED, len(deep))).astype(int)]
    narrow = _narrow(source, deep)
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
        "modes": dict(Counter(header.mode for header in known)),
        "formats": dict(Counter(header.format for header in known)),
        "bytes": sum(header.bytes for header in known),
        "unreadable": len(headers) - len(known),
        "remarks": findings.summed(
            [(source.ids[k], header.traits) for k, header in enumerate(headers) if header is not None]
            + [(source.ids[k], ["narrow"]) for k in narrow],
            total=len(known),
            total_16_bits=len(deep),
        ),
    }


def _header(image: images.Stored) -> _Looked | None:
    try:
        if isinstance(image, np.ndarray):
            return _looked(images.opened(image), image.nbytes, frozenset())
        header = look(image, thorough=False)
        if isinstance(header, Fault):
            return None
        if image.length is None:
            with os.fdopen(open_regular(image.path, links=True), "rb") as file:
                return _looked(Image.open(file), os.fstat(file.fileno()).st_size, header.traits)
        return _looked(images.opened(image), image.length, header.traits)
    except _DAMAGED:
        return None


def _looked(image: Image.Image, size: int, traits: frozenset[str]) -> _Looked:
    return _Looked(image.width, image.height, image.mode, image.format or "pixels", size, traits)


def _narrow(source: Source, rows: list[int]) -> list[int]:
    """Return which of `rows`, images of 16 bits, use only the lowest values."""
    stored = list(images.stored(source)) if rows else []
    narrow = []
    for k in rows:
        with suppress(*_DAMAGED):
            if findings.is_narrow(images.pixels(stored[k])):
                narrow.append(k)
    return narrow


def contact_sheet(source: Source) -> Image.Image | None:
    """Draw a row of samples of each class under its name; None for a source that generates its images."""
    stored = list(images.stored(source))
    if not stored:
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
            sheet.paste(_tile(stored[k]), (column * _TILE, top + _LABEL))
    return sheet


def _tile(image: images.Stored) -> Image.Image:
    tile = Image.new("RGB", (_TILE, _TILE), (24, 24, 24))
    try:
        if isinstance(image, Location) and (damage := fault(image)):
            raise ValueError(damage.reason)
        pixels = Image.fromarray(images.pixels(image))
    except _DAMAGED:
        ImageDraw.Draw(tile).line((0, 0, _TILE, _TILE), fill=(255, 0, 0), width=3)
        return tile
    scale = (_TILE - 2) / max(pixels.size)
    width, height = (max(1, round(side * scale)) for side in pixels.size)
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    tile.paste(pixels.resize((width, height), kind), (1, 1))
    return tile
