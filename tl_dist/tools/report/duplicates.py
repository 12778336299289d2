"""Equal and nearly equal images in different splits, as a report shows them."""

from __future__ import annotations

from typing import NamedTuple

from tl_dist.datasets import Splits
from tl_dist.datasets.curation.verification import across_splits

MAX_IMAGES = 20_000
"""to look at: more take minutes, and are for `tl-dist data verify`"""
DISTANCE = 3
"""bits in which hashes of nearly equal images differ at most"""


class Place(NamedTuple):
    """An image and where it is."""

    id: str
    split: str
    label: str


class Twin(NamedTuple):
    """Two images in different splits."""

    pair: tuple[Place, Place]
    equal: bool


def twins_in(splits: Splits, workers: int) -> list[Twin] | None:
    """The equal ones first; None where there are too many images to look at."""
    if len(splits) < 2 or sum(source.num_examples for source in splits.values()) > MAX_IMAGES:
        return None
    found = across_splits(splits, workers=workers, distance=DISTANCE)
    return [Twin((_place(splits, one.first), _place(splits, one.second)), one.equal) for one in found]


def _place(splits: Splits, place: tuple[str, int]) -> Place:
    split, number = place
    source = splits[split]
    return Place(str(source.ids[number]), split, str(source.class_names[source.labels[number]]))
