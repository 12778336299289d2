"""Verify a data set: decode every image, and find duplicates within and across splits."""

import hashlib
import io
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl_dist.datasets import Splits
from tl_dist.datasets.curation import images
from tl_dist.datasets.curation.layout import opened
from tl_dist.datasets.headers import Fault, fault
from tl_dist.datasets.preprocess import FORMATS, rgb
from tl_dist.datasets.processes import process_pool
from tl_dist.datasets.quarantine import left_out

Advance = Callable[[int, int], None]
"""called with (done, total)"""

_CHUNK = 64


class _Checked(NamedTuple):
    fault: Fault | None
    digest: str = ""  # of size and RGB pixels
    hash: int = 0  # perceptual
    traits: frozenset[str] = frozenset()


def verify(path: Path, *, workers: int, distance: int, advance: Advance) -> dict[str, Any]:
    """Return what is wrong with the data set at `path`, as JSON: `bad` files, `equal` and `near` duplicates, `leaks`.

    `near` are pairs whose perceptual hashes (phash of imagehash, 64 bits) differ in at most `distance` bits; a negative
    distance skips the search. `leaks` counts the groups and pairs in more than one split. `remarks` say what training
    does to some images (see `images`). `ok` means no bad file and no leak.
    """
    data, splits = opened(path)
    places, checked = _check_all(splits, workers, advance)
    names = [(split, splits[split].ids[k]) for split, k in places]
    equal, pairs = _twins(checked, distance)
    bad = [bad._asdict() for bad in left_out(splits)] + [
        {"split": split, "id": name, **check.fault._asdict()}
        for (split, name), check in zip(names, checked, strict=True)
        if check.fault is not None
    ]
    leaks = sum(len({names[k][0] for k in group}) > 1 for group in [*equal, *pairs])
    return {
        "kind": data.name,
        "path": data.path,
        "num_examples": len(names),
        "bad": bad,
        "equal": [[": ".join(names[k]) for k in group] for group in equal],
        "near": [[": ".join(names[k]) for k in pair] for pair in pairs],
        "leaks": leaks,
        "remarks": images.remarks(
            ((name, check.traits) for (_, name), check in zip(names, checked, strict=True)),
            total=len(names),
            total_16_bits=sum(images.DEEP in check.traits for check in checked),
        ),
        "ok": not bad and not leaks,
    }


def across_splits(
    splits: Splits, *, workers: int, distance: int
) -> list[tuple[bool, tuple[str, int], tuple[str, int]]]:
    """Find images in different splits that are equal, then those whose hashes differ in at most `distance` bits.

    Returns (if they are equal, (split, index in it) of each). Decodes every image.
    """
    places, checked = _check_all(splits, workers, lambda done, total: None)
    equal, near = _twins(checked, distance)
    # The first of equal images in each split represents all.
    firsts = [list({places[k][0]: k for k in reversed(group)}.values()) for group in equal]
    pairs = [(pair, True) for group in firsts for pair in combinations(sorted(group), 2)]
    pairs += [((i, j), False) for i, j in near if places[i][0] != places[j][0]]
    return [(is_equal, places[i], places[j]) for (i, j), is_equal in pairs]


def _twins(checked: Sequence[_Checked], distance: int) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Return groups of equal images, and pairs of nearly equal ones, among those that can be decoded."""
    by_digest: dict[str, list[int]] = defaultdict(list)
    for k, check in enumerate(checked):
        if check.fault is None:
            by_digest[check.digest].append(k)
    distinct = [group[0] for group in by_digest.values()] if distance >= 0 else []
    near = near_pairs(np.array([checked[k].hash for k in distinct], np.uint64), distance)
    equal = [group for group in by_digest.values() if len(group) > 1]
    return equal, [(distinct[i], distinct[j]) for i, j in near.tolist()]


def _check_all(splits: Splits, workers: int, advance: Advance) -> tuple[list[tuple[str, int]], list[_Checked]]:
    """Decode every image; returns (split, index in it) and the result of each, without generated images."""
    stored = {(split, k): image for split, source in splits.items() for k, image in enumerate(images.stored(source))}
    every, checked = list(stored.values()), list[_Checked]()
    chunks = [every[k : k + _CHUNK] for k in range(0, len(every), _CHUNK)]
    with process_pool(workers, "forkserver") as pool:
        for part in [pool.submit(_check, chunk) for chunk in chunks]:
            checked += part.result()
            advance(len(checked), len(every))
    return list(stored), checked


def _check(chunk: Sequence[images.Stored]) -> list[_Checked]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Pillow, on headers that `fault` accepts
        return [_check_one(image) for image in chunk]


def _check_one(image: images.Stored) -> _Checked:
    import imagehash

    traits: frozenset[str] = frozenset()
    if isinstance(image, np.ndarray):
        pixels = image
    else:
        if (damage := fault(image)) is not None:
            return _Checked(damage)
        try:
            content = image.read()
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened_image:
                traits = images.traits(opened_image)
            pixels = rgb(content)
        except images.ERRORS as error:
            return _Checked(Fault(image.offset, f"cannot be decoded: {error}"))
    if images.DEEP in traits and images.is_narrow(pixels):
        traits |= {images.NARROW}
    picture = Image.fromarray(pixels)
    digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
    return _Checked(None, digest, int(str(imagehash.phash(picture)), 16), traits)


def near_pairs(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """Find pairs (i, j), i < j, of 64-bit hashes that differ in at most `distance` bits; int64 [pairs, 2].

    Each hash is cut into distance + 1 bands. Two that differ in at most `distance` bits agree in at least one band
    (Manku et al., WWW 2007), so only hashes that share a band are compared. Of equal hashes the first represents all
    and is paired with each of the others.
    """
    unique, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    bounds = np.linspace(0, 64, distance + 2).astype(int)
    pairs = {(int(first[g]), k) for k, g in enumerate(group) if first[g] != k}
    for low, high in pairwise(bounds):
        band = (unique >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        keys, values = band[order], unique[order]
        for shift in range(1, len(order)):
            same = np.flatnonzero(keys[shift:] == keys[:-shift])
            if not same.size:
                break
            close = same[np.bitwise_count(values[same] ^ values[same + shift]) <= distance]
            ends = np.sort(np.stack([first[order[close]], first[order[close + shift]]], axis=1), axis=1)
            pairs.update(map(tuple, ends.tolist()))
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)
