"""`tl-dist data inspect`: show what a data set holds: classes, sizes, kinds of files, and a sheet of samples."""

import io
import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from rich.table import Table

from tl_dist.datasets import Source
from tl_dist.datasets.curation import images
from tl_dist.datasets.curation.layout import opened
from tl_dist.datasets.headers import fault
from tl_dist.datasets.preprocess import FORMATS
from tl_dist.files.atomic import write_output
from tl_dist.files.foreign import open_regular, refuse_other_picture
from tl_dist.tasks import classification
from tl_dist.terminal.console import Console, plain
from tl_dist.terminal.tables import show_remarks

_THREADS = 8
_TILE = 96
_LABEL = 14
_SAMPLES = 8
_SHEET_CLASSES = 20
_DEEP_DECODED = 64  # number of images of 16 bits that are decoded
_BAR = 30
_MAX_CLASSES = 40


class _Header(NamedTuple):
    size: tuple[int, int]
    """width and height"""
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
        "remarks": classification.remarks(splits["train"].class_names),
        "splits": {name: _split(source) for name, source in splits.items()},
    }
    if sheet is not None and (picture := contact_sheet(splits["train"])) is not None:
        content = io.BytesIO()
        picture.save(content, "PNG")
        write_output(sheet, content.getvalue(), option="--sheet")
        facts["sheet"] = str(sheet)
    return facts


def _is_sheet(width: int, height: int) -> bool:
    return width == _SAMPLES * _TILE and not height % (_TILE + _LABEL)


def _split(source: Source) -> dict[str, Any]:
    counts = np.bincount(source.labels, minlength=source.num_classes)
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore")  # from Pillow, on large images: the threads share this setting
        headers = list(pool.map(_header, images.stored(source), chunksize=64))
    known = {k: header for k, header in enumerate(headers) if header is not None}
    sizes = np.array([header.size for header in known.values()]).reshape(-1, 2)
    deep = [k for k, header in known.items() if images.DEEP in header.traits]
    deep = [deep[at] for at in np.linspace(0, len(deep) - 1, min(_DEEP_DECODED, len(deep))).astype(int)]
    kinds = [(source.ids[k], header.traits) for k, header in known.items()]
    kinds += [(source.ids[k], frozenset({images.NARROW})) for k in deep if _is_narrow(source, k)]
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
        "modes": dict(Counter(header.mode for header in known.values())),
        "formats": dict(Counter(header.format for header in known.values())),
        "bytes": sum(header.bytes for header in known.values()),
        "unreadable": len(headers) - len(known),
        "remarks": images.remarks(kinds, total=len(known), total_16_bits=len(deep)),
    }


def _header(image: images.Stored) -> _Header | None:
    if isinstance(image, np.ndarray):
        height, width, _ = image.shape
        return _Header((width, height), "RGB", "pixels", image.nbytes, frozenset())
    if fault(image, thorough=False) is not None:
        return None
    try:
        with os.fdopen(open_regular(image.path, links=True), "rb") as file:
            size = os.fstat(file.fileno()).st_size if image.length is None else image.length
            content = file if image.length is None else io.BytesIO(image.read())
            with Image.open(content, formats=FORMATS) as opened_image:
                traits = images.traits(opened_image)
                return _Header(opened_image.size, opened_image.mode, str(opened_image.format), size, traits)
    except images.ERRORS:
        return None


def _is_narrow(source: Source, k: int) -> bool:
    with suppress(*images.ERRORS):
        return images.is_narrow(images.pixels(source.location(k)))
    return False


def contact_sheet(source: Source) -> Image.Image | None:
    """Draw a row of samples of each class under its name; None for a source that generates its images."""
    stored = list(images.stored(source))
    if not stored:
        return None
    labels = source.labels
    shown = np.unique(labels)[:_SHEET_CLASSES]
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
        pixels = Image.fromarray(images.pixels(image))
    except images.ERRORS:
        ImageDraw.Draw(tile).line((0, 0, _TILE, _TILE), fill=(255, 0, 0), width=3)
        return tile
    kind = Image.Resampling.NEAREST if max(pixels.size) < _TILE - 2 else Image.Resampling.LANCZOS
    tile.paste(ImageOps.contain(pixels, (_TILE - 2, _TILE - 2), kind), (1, 1))
    return tile


def show(facts: dict[str, Any], console: Console) -> None:
    """Print the counts with bars."""
    place = facts["path"] or "the cache of packages"
    console.say(f"{facts['kind']} in {place}, {len(facts['classes'])} classes")
    for remark in facts["remarks"]:
        console.say(f"look at the labels: {remark}", style="yellow")
    for name, split in facts["splits"].items():
        console.print()
        console.say(f"{name}: {_line(split)}")
        table = Table(box=None, show_header=False, padding=(0, 1))
        table.add_column(overflow="fold")
        table.add_column(no_wrap=True)
        largest = max([1, *split["counts"].values()])
        for label, number in list(split["counts"].items())[:_MAX_CLASSES]:
            bar = "█" * round(_BAR * number / largest)
            table.add_row(plain(label), plain(f"{number:,}", justify="right"), bar)
        console.print(table)
        if (more := len(split["counts"]) - _MAX_CLASSES) > 0:
            console.print(f"  and {more} more classes")
        show_remarks(split["remarks"], console)
    if "sheet" in facts:
        console.say(f"samples of train: {facts['sheet']}")


def _line(split: dict[str, Any]) -> str:
    parts = [f"{split['num_examples']:,} examples"]
    if split["imbalance"]:
        parts.append(f"largest class {split['imbalance']:.2f} x the smallest")
    if split["sizes"]:
        sizes = ", ".join(f"{key} {width} x {height}" for key, (width, height) in split["sizes"].items())
        parts += [sizes, _counted(split["formats"]), _counted(split["modes"])]
        parts.append(f"{split['bytes'] / 1e6:,.1f} MB")
    if split["unreadable"]:
        parts.append(f"{split['unreadable']} unreadable: run tl-dist data verify")
    return "; ".join(parts)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in Counter(counts).most_common())
