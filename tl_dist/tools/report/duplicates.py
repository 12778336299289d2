"""Find equal and nearly equal images in different splits, for the report."""

from __future__ import annotations

from typing import NamedTuple

from tl_dist.datasets import Splits
from tl_dist.datasets.curation.verification import across_splits

MAX_IMAGES = 20_000
"""in all splits: more take minutes, and are left to `tl-dist data verify`"""
MAX_SHOWN = 24
"""pairs on the page"""
DISTANCE = 3
"""most bits in which the hashes of nearly equal images differ"""


class Place(NamedTuple):
    """An image, its split and its label."""

    id: str
    split: str
    label: str


class Twin(NamedTuple):
    """Two images in different splits."""

    pair: tuple[Place, Place]
    equal: bool


def twins_in(splits: Splits, workers: int) -> list[Twin] | None:
    """List the pairs, equal ones first; None if there are fewer than two splits, or too many images to compare."""
    if len(splits) < 2 or sum(source.num_examples for source in splits.values()) > MAX_IMAGES:
        return None
    pairs = across_splits(splits, workers=workers, distance=DISTANCE)
    return [Twin((_place(splits, pair.first), _place(splits, pair.second)), pair.equal) for pair in pairs]


def _place(splits: Splits, place: tuple[str, int]) -> Place:
    split, number = place
    source = splits[split]
    return Place(str(source.ids[number]), split, str(source.class_names[source.labels[number]]))
