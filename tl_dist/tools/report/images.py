"""Read for the report what only the data set knows: its images as thumbnails, near duplicates, and groups.

Thumbnails are `data:` addresses of WebP, made without TensorFlow.
"""

import base64
import io
import os
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl_dist.datasets import Splits
from tl_dist.datasets.curation import images
from tl_dist.datasets.curation.verification import across_splits
from tl_dist.datasets.division import open_splits, pooled
from tl_dist.refusal import Refusal
from tl_dist.tools.report.facts import Facts

SIDE = 112
"""pixels of the longer side: sharp at the size of a tile, and a page with a thousand of them has 4 MB"""
HEAT_SIDE = 176
MAX_COMPARED = 20_000  # images in all splits: more take minutes, and are left to `tl-dist data verify`
MAX_TWINS = 24  # pairs on the page
_DISTANCE = 3  # most bits in which the hashes of nearly equal images differ
_QUALITY = 60
_THREADS = 4


Twin = tuple[bool, list[tuple[str, str, str]]]
"""whether two images in different splits are equal, or nearly so, and the id, split and label of each"""


def opened(facts: Facts, notes: list[str]) -> Splits:
    """Open the splits of the run's data set; return none, with a note, if that is no longer possible."""
    try:
        return open_splits(facts.cfg.data)[0]
    except Refusal as refusal:
        notes.append(f"The page has no images: {refusal.what}")
        return {}


def twins_of(facts: Facts, splits: Splits) -> list[Twin] | None:
    """List equal images, then nearly equal ones; None if there are fewer than two splits, or too many images."""
    parts = held_out_by(facts, splits)
    if len(parts) < 2 or sum(source.num_examples for source in parts.values()) > MAX_COMPARED:
        return None

    def place(split: str, k: int) -> tuple[str, str, str]:
        source = parts[split]
        return str(source.ids[k]), split, source.in_words(source.truth[k])

    pairs = across_splits(parts, workers=len(os.sched_getaffinity(0)), distance=_DISTANCE)
    return [(is_equal, [place(*first), place(*second)]) for is_equal, first, second in pairs]


def held_out_by(facts: Facts, splits: Splits) -> Splits:
    """Return the parts that must not share images: the splits; of out-of-fold predictions, the first seed's folds."""
    if facts.folds is None or facts.out_of_fold is None:
        return splits
    fold = dict(zip(facts.out_of_fold.ids.tolist(), facts.out_of_fold.fold[0].tolist(), strict=True))
    pool = pooled(splits)
    of = np.array([fold.get(name, -1) for name in pool.ids])
    return {"test" if k < 0 else f"fold {k}": pool.subset(np.flatnonzero(of == k)) for k in np.unique(of)}


def groups_of(ids: NDArray[Any], splits: Splits) -> NDArray[Any]:
    """Look up the group of each example in the data set, for predictions saved without; empty if it has none."""
    known: dict[str, str] = {}
    for source in splits.values():
        known |= dict(zip(source.ids, source.annotations.groups or (), strict=False))
    whole = bool(known) and known.keys() >= set(ids.tolist())
    return np.array([known[name] for name in ids.tolist()] if whole else [], np.str_)


def thumbnails(splits: Splits, ids: Iterable[str]) -> Mapping[str, str]:
    """Return thumbnails by id; images that cannot be decoded, and generated images, have none."""
    wanted, addresses = set(ids), dict[str, str]()
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore")  # Pillow's, about files that passed the check of their headers
        for source in splits.values():
            rows = [k for k, name in enumerate(source.ids) if name in wanted]
            for k, address in zip(rows, pool.map(_thumbnail, images.stored(source, rows)), strict=False):
                if address is not None:
                    addresses[source.ids[k]] = address
    return addresses


def _thumbnail(image: images.Stored) -> str | None:
    try:
        return address_of(images.pixels(image), SIDE)
    except images.ERRORS:
        return None


def address_of(picture: Image.Image | NDArray[np.uint8], side: int) -> str:
    """Encode a picture, scaled to `side` pixels on its longer side, as a `data:` address."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    scale = side / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    kind = Image.Resampling.NEAREST if scale > 3 else Image.Resampling.LANCZOS
    content = io.BytesIO()
    image.resize((width, height), kind).save(content, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
