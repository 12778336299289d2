"""The proof that a data set is whole: every image is decoded, and none is there twice across splits."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tl_dist.datasets import Splits
from tl_dist.datasets.byte_range import Location
from tl_dist.datasets.curation import duplicates, findings, images
from tl_dist.datasets.curation.layout import opened
from tl_dist.datasets.headers import DEEP, Fault, look
from tl_dist.datasets.processes import process_pool
from tl_dist.datasets.quarantine import left_out

Advance = Callable[[int, int], None]
"""Told (done, total) as it goes on."""

_CHUNK = 64


class _Checked(NamedTuple):
    fault: Fault | None
    digest: str = ""  # of size and RGB pixels
    hash: int = 0  # perceptual
    traits: frozenset[str] = frozenset()


def verify(path: Path, *, workers: int, distance: int, advance: Advance) -> dict[str, Any]:
    """What is wrong with the data set at `path`, as JSON: `bad` files, `equal` and `near` duplicates, `leaks`.

    `near` are pairs whose perceptual hashes (phash of imagehash, 64 bits) differ in at most `distance` bits; below
    0 none are looked for. `leaks` counts the groups and pairs that lie in more than one split. `findings` are on what
    training does to some images (see `findings`). `ok` is whether there is neither a bad file nor a leak.
    """
    data, splits = opened(path)
    every = images.everything(splits)
    checked = _check_all([image for _, _, image in every], workers, advance)
    equal, pairs = _twins(checked, distance)
    bad = [bad._asdict() for bad in left_out(splits)] + [
        {"split": split, "id": name, "offset": found.fault.offset, "reason": found.fault.reason}
        for (split, name, _), found in zip(every, checked, strict=True)
        if found.fault is not None
    ]
    leaks = sum(len({every[k][0] for k in group}) > 1 for group in [*equal, *pairs])

    def named(groups: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[f"{every[k][0]}: {every[k][1]}" for k in group] for group in groups]

    return {
        "kind": data.name,
        "path": data.path,
        "num_examples": len(every),
        "bad": bad,
        "equal": named(equal),
        "near": named(pairs),
        "leaks": leaks,
        "remarks": findings.summed(
            ((name, found.traits) for (_, name, _), found in zip(every, checked, strict=True)),
            total=len(every),
            total_16_bits=sum(DEEP in found.traits for found in checked),
        ),
        "ok": not bad and not leaks,
    }


class Twins(NamedTuple):
    """Two images in different splits that are equal or nearly so: (split, number in it) of each."""

    first: tuple[str, int]
    second: tuple[str, int]
    equal: bool


def across_splits(splits: Splits, *, workers: int, distance: int) -> list[Twins]:
    """The equal ones, then those whose perceptual hashes differ in at most `distance` bits. Decodes every image."""
    places = [(split, k) for split, source in splits.items() for k in range(source.num_examples)]
    every = images.everything(splits)
    if len(every) < len(places):  # a source makes its images up
        return []
    checked = _check_all([image for _, _, image in every], workers, lambda done, total: None)
    equal, near = _twins(checked, distance)
    # Of equal images the first in each split stands for all.
    firsts = [list({places[k][0]: k for k in reversed(group)}.values()) for group in equal]
    pairs = [(pair, True) for group in firsts for pair in combinations(sorted(group), 2)]
    pairs += [((i, j), False) for i, j in near if places[i][0] != places[j][0]]
    return [Twins(places[i], places[j], is_equal) for (i, j), is_equal in pairs]


def _twins(checked: Sequence[_Checked], distance: int) -> tuple[list[list[int]], list[list[int]]]:
    """Groups of equal images, and pairs of nearly equal ones; of what cannot be decoded, none."""
    whole = [k for k, found in enumerate(checked) if found.fault is None]
    equal = [[whole[i] for i in group] for group in duplicates.equal([checked[k].digest for k in whole])]
    again = {k for group in equal for k in group[1:]}
    once = [k for k in whole if k not in again] if distance >= 0 else []
    near = duplicates.near(np.array([checked[k].hash for k in once], np.uint64), distance)
    return equal, [[once[i], once[j]] for i, j in near.tolist()]


def _check_all(every: Sequence[images.Stored], workers: int, advance: Advance) -> list[_Checked]:
    chunks = [every[k : k + _CHUNK] for k in range(0, len(every), _CHUNK)]
    checked: list[_Checked] = []
    with process_pool(workers, "forkserver") as pool:
        for part in [pool.submit(_check, chunk) for chunk in chunks]:
            checked += part.result()
            advance(len(checked), len(every))
    return checked


def _check(chunk: Sequence[images.Stored]) -> list[_Checked]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on what `fault` has let through
        return [_check_one(image) for image in chunk]


def _check_one(image: images.Stored) -> _Checked:
    import imagehash

    traits: frozenset[str] = frozenset()
    if not isinstance(image, np.ndarray):
        header = look(image)
        if isinstance(header, Fault):
            return _Checked(header)
        if (changed := _changed(image)) is not None:
            return _Checked(changed)
        traits = header.traits
    try:
        pixels = images.pixels(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        offset = 0 if isinstance(image, np.ndarray) else image.offset
        return _Checked(Fault(offset, f"cannot be decoded: {error}"))
    picture = Image.fromarray(pixels)
    digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
    if DEEP in traits and findings.is_narrow(pixels):
        traits |= {"narrow"}
    return _Checked(None, digest, int(str(imagehash.phash(picture)), 16), traits)


def _changed(image: Location) -> Fault | None:
    """Whether the bytes are not those that were stored, where a checksum tells."""
    if image.crc32c is None:
        return None
    import google_crc32c

    right = google_crc32c.value(images.encoded(image)) == image.crc32c
    return None if right else Fault(image.offset, "has a wrong checksum")
